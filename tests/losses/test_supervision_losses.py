"""Conditional, adjusted and virtual teachers, and triplets: what their classes add to the formulas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toy_representations import STUDENT, TEACHER, TOKENS, toy_anatomy

from hfdistill.functional.response import soft_target_cross_entropy, soft_target_kl
from hfdistill.functional.supervision import cwsm_temperature, flsw_temperature, label_smoothing, probability_shift
from hfdistill.losses.response.conditional import ConditionalTeacherLoss
from hfdistill.losses.response.knowledge_adjustment import AdjustedTargetLoss
from hfdistill.losses.response.lightweight_teacher import LightweightTeacherLoss, VirtualTeacher
from hfdistill.losses.response.triplet import TripletLoss
from hfdistill.representations import Batch, Representations
from hfdistill.schedules import Piecewise

LABELS = torch.tensor([0, 1, 2, 1, 0, 2])


def given(loss: nn.Module, student: Tensor, teacher: Tensor, labels: Tensor | None = LABELS, **batch: Any) -> Tensor:
    """The loss of these logits."""
    value: Tensor = loss(Representations(student), Representations(teacher), Batch(len(student), labels, **batch))
    return value


def drawn(classes: int = 3) -> tuple[Tensor, Tensor]:
    """Logits of six rows, of both sides."""
    student, teacher = 2 * torch.randn(2, len(LABELS), classes)
    return student, teacher


@pytest.mark.data
def test_the_golden_value_through_the_class(shared: Path) -> None:
    """The formula is held to it elsewhere; here the class must hand it the right tensors in the right places."""
    (case,) = (case for case in golden.read_cases(shared / "methods/golden.json") if case["id"] == "conditional_ts")
    student, teacher = (torch.tensor(case["inputs"][side], dtype=torch.float64) for side in "st")
    value = given(ConditionalTeacherLoss(), student, teacher, torch.tensor(case["inputs"]["y"]))
    assert value.item() == pytest.approx(case["expected"], rel=1e-9)


# ---- the conditional teacher ----


def test_rows_that_learn_the_label_are_not_softened() -> None:
    """At T = 3 the rows of a teacher that errs are the plain cross-entropy, which needs no temperature."""
    student, teacher = drawn()
    wrong = (teacher.argmax(-1) + 1) % 3
    loss = ConditionalTeacherLoss(Piecewise({0.0: 3.0, 0.5: 1.0}))
    torch.testing.assert_close(given(loss, student, teacher, wrong), F.cross_entropy(student, wrong))
    right = given(loss, student, teacher, teacher.argmax(-1))
    torch.testing.assert_close(right, soft_target_cross_entropy(student, teacher, 3.0))
    later = given(loss, student, teacher, teacher.argmax(-1), progress=0.5)
    torch.testing.assert_close(later, soft_target_cross_entropy(student, teacher, 1.0))


# ---- adjusted targets ----


def test_mistakes_are_put_right() -> None:
    """Soft targets, but from the adjusted logits; the smoothed label at any temperature."""
    student, teacher = drawn()
    shifted = given(AdjustedTargetLoss(2.0), student, teacher)
    torch.testing.assert_close(shifted, soft_target_kl(student, probability_shift(teacher, LABELS), 2.0))
    smoothed = given(AdjustedTargetLoss(2.0, "smoothing", epsilon=0.3), student, teacher)
    target = label_smoothing(teacher, LABELS, 2.0, 0.3)
    torch.testing.assert_close(smoothed, soft_target_kl(student, target, 2.0))
    plain = given(AdjustedTargetLoss(2.0, "none"), student, teacher, None)
    torch.testing.assert_close(plain, soft_target_kl(student, teacher, 2.0))


@pytest.mark.parametrize("scaled", [True, False])
def test_each_row_has_its_own_temperature_and_its_square(scaled: bool) -> None:
    """On both sides and as the factor; one common T^2 would weigh the rows anew."""
    student, teacher = drawn()
    for dynamic, rows in (
        ("flsw", flsw_temperature(student, teacher, 4.0, 0.7, 2.0)),
        ("cwsm", cwsm_temperature(student, 4.0, 0.7)),
    ):
        loss = AdjustedTargetLoss(
            4.0, "none", dynamic=dynamic, beta=0.7, gamma=2.0, lowest_temperature=0.1, scale_by_temperature=scaled
        )
        one_by_one = [
            soft_target_kl(student[i], teacher[i], rows[i].item(), scale_by_temperature=scaled) for i in range(6)
        ]
        assert rows.min() > 0.1
        torch.testing.assert_close(given(loss, student, teacher), torch.stack(one_by_one).mean())


def test_temperatures_do_not_fall_below_their_bound() -> None:
    """With a large beta they would turn negative, and the teacher's worst class into the target."""
    student, teacher = drawn()
    loss = AdjustedTargetLoss(2.0, "none", dynamic="flsw", beta=40.0, lowest_temperature=1.5)
    rows = flsw_temperature(student, teacher, 2.0, 40.0, 1.0)
    assert rows.min() < 0
    expected = soft_target_kl(student, teacher, rows.clamp(min=1.5)[:, None])
    torch.testing.assert_close(given(loss, student, teacher), expected)


def test_ignored_rows_lend_no_temperature() -> None:
    """The mean that temperatures are traded around is that of the rows that count."""
    student, teacher = drawn()
    labels = torch.where(torch.arange(6) < 4, LABELS, -100)
    loss = AdjustedTargetLoss(dynamic="flsw", beta=2.0)
    kept = given(loss, student[:4], teacher[:4], LABELS[:4])
    torch.testing.assert_close(given(loss, student, teacher, labels), kept)


def test_adjusting_needs_labels_and_says_what_does_not() -> None:
    """Without them no mistake can be seen; the temperatures alone need none."""
    student, teacher = drawn()
    with pytest.raises(ValueError, match=r"adjustment='shift'.*the batch has none.*adjustment='none'"):
        given(AdjustedTargetLoss(), student, teacher, None)
    assert given(AdjustedTargetLoss(adjustment="none", dynamic="cwsm"), student, teacher, None).isfinite()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"adjustment": "swap"}, "'shift', 'smoothing', 'none', got 'swap'"),
        ({"dynamic": "focal"}, "'flsw', 'cwsm', got 'focal'"),
        ({"epsilon": 1.0}, r"epsilon must be in \[0, 1\), got 1.0"),
        ({"lowest_temperature": 0.0}, "lowest_temperature must be above 0"),
        ({"temperature": -1.0}, "temperature must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(keywords: dict[str, Any], message: str) -> None:
    """At construction, with what is accepted."""
    with pytest.raises(ValueError, match=message):
        AdjustedTargetLoss(**keywords)


# ---- triplets ----


def test_a_negative_is_a_row_with_another_label() -> None:
    """Two classes of one row each leave one choice: the value is that of those two triplets, by hand."""
    student, teacher = drawn()
    labels = torch.tensor([0, -100, 1, -100, -100, -100])
    expected = F.triplet_margin_loss(teacher[[0, 2]], student[[0, 2]], student[[2, 0]], 3.0)
    torch.testing.assert_close(given(TripletLoss(3.0), student, teacher, labels), expected)


def test_partners_are_drawn_evenly_and_only_from_other_labels() -> None:
    """Around a teacher at 0 a row's gradient counts how often it was drawn: own class and no label never."""
    labels, teacher = torch.tensor([0, 0, 1, -100]), torch.zeros(4, 3)
    counts = []
    for seed in range(200):
        torch.manual_seed(seed)
        student = torch.eye(4, 3).add(0.5).requires_grad_()
        given(TripletLoss(100.0), student, teacher, labels).backward()
        assert student.grad is not None
        pull = 3 * (student.grad * F.normalize(student.detach(), dim=-1)).sum(-1)  # 1 - draws, for rows that count
        counts.append((torch.tensor([1, 1, 1, 0]) - pull).round().int().tolist())
    assert {tuple(count) for count in counts} == {(1, 0, 2, 0), (0, 1, 2, 0)}
    assert 60 < sum(count[0] for count in counts) < 140


def test_rows_without_a_partner_are_dropped() -> None:
    """One class teaches nothing here, and must not dilute the mean of those that have a partner either."""
    student, teacher = drawn()
    one_class = torch.zeros(6, dtype=torch.long)
    watched = student.requires_grad_()
    value = given(TripletLoss(), watched, teacher, one_class)
    value.backward()
    assert value == 0
    assert watched.grad is not None
    assert not watched.grad.any()


def test_heads_of_tokens_are_refused() -> None:
    """A quadratic number of pairs of tokens: with what to use instead."""
    tokens = toy_anatomy(head=TOKENS)
    with pytest.raises(ValueError, match=r"ForTokenClassification.*Use SoftTargetLoss"):
        TripletLoss().bind(tokens, tokens)
    with pytest.raises(ValueError, match="margin must be above 0, got 0"):
        TripletLoss(0.0)


# ---- the virtual teacher ----


@pytest.mark.parametrize("classes", [2, 7])
def test_the_virtual_teacher_is_right_about_every_point(classes: int) -> None:
    """A target that names another class than the label would teach a mistake."""
    virtual = VirtualTeacher(classes, 8, seed=3)
    labels = torch.arange(classes).repeat(100)
    logits = virtual(labels)
    assert torch.equal(logits.argmax(-1), labels)
    assert len(logits[labels == 0].unique(dim=0)) == 8


def test_the_virtual_teacher_depends_on_its_seed_alone() -> None:
    """A run is repeatable whatever was drawn before, and making the teacher draws nothing from the run's generator."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = VirtualTeacher(3, 4, seed=0)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), VirtualTeacher(3, 4, seed=0).buffers(), strict=True))
    assert not torch.equal(first.inner, VirtualTeacher(3, 4, seed=1).inner)


def test_with_one_item_it_is_kd_with_a_fixed_target_per_class() -> None:
    """What is left without chance and adversary; no teacher is asked."""
    student, _ = drawn()
    loss = LightweightTeacherLoss(3.0, items=1)
    loss.bind(STUDENT, STUDENT)
    assert loss.virtual is not None
    fixed = loss.virtual(torch.arange(3))
    value = loss(Representations(student), Representations(), Batch(6, LABELS))
    torch.testing.assert_close(value, soft_target_kl(student, fixed[LABELS], 3.0))


def test_another_point_is_drawn_for_each_row() -> None:
    """Two rows of one class get different targets, and so do two steps."""
    student = torch.zeros(2, 3, requires_grad=True)
    loss = LightweightTeacherLoss()
    loss.bind(STUDENT, TEACHER)
    gradients = [
        torch.autograd.grad(given(loss, student, student, torch.tensor([1, 1])), student)[0] for _ in range(2)
    ]
    assert not torch.equal(gradients[0][0], gradients[0][1])
    assert not torch.equal(gradients[0], gradients[1])


def test_student_and_discriminator_have_gradients_of_their_own() -> None:
    """The student must not be moved by what trains D, nor D by what moves the student: each would undo the other."""
    student, _ = drawn()
    student.requires_grad_()
    plain, both = LightweightTeacherLoss(items=1), LightweightTeacherLoss(items=1, adversarial=True)
    for loss in (plain, both):
        loss.bind(STUDENT, STUDENT)
    value = given(both, student, student)
    to_student = torch.autograd.grad(value - given(plain, student, student), student, retain_graph=True)[0]
    ours = (student / 4.0).softmax(-1)
    passed = -F.logsigmoid(both.discriminator(ours)).mean()
    torch.testing.assert_close(to_student, torch.autograd.grad(passed, student)[0])
    assert both.virtual is not None
    theirs = (both.virtual(LABELS) / 4.0).softmax(-1)
    told = -F.logsigmoid(both.discriminator(theirs)) - F.logsigmoid(-both.discriminator(ours.detach()))
    parameters = list(both.discriminator.parameters())
    expected = torch.autograd.grad(told.mean(), parameters)
    torch.testing.assert_close(torch.autograd.grad(value, parameters), expected)
    weighed = LightweightTeacherLoss(items=1, adversarial=True, adversarial_weight=3.0)
    weighed.bind(STUDENT, STUDENT)
    weighed.load_state_dict(both.state_dict())
    torch.testing.assert_close(given(weighed, student, student) - value, 2 * passed)


def test_the_virtual_teacher_is_saved_and_kept() -> None:
    """A resumed run, and a later stage, go on with the same targets; other classes need another teacher."""
    loss, resumed = LightweightTeacherLoss(seed=0), LightweightTeacherLoss(seed=1)
    for one in (loss, resumed):
        one.bind(STUDENT, TEACHER)
    resumed.load_state_dict(loss.state_dict())
    assert loss.virtual is not None
    assert resumed.virtual is not None
    assert torch.equal(resumed.virtual.inner, loss.virtual.inner)
    kept = loss.virtual
    loss.bind(STUDENT, TEACHER)
    assert loss.virtual is kept
    loss.bind(replace(STUDENT, classes=5), TEACHER)
    assert loss.virtual is not None
    assert loss.virtual.bias.shape == (5,)


@pytest.mark.parametrize("head", ["ForCausalLM", "ForMaskedLM"])
def test_language_models_are_refused(head: str) -> None:
    """Synthetic data of thirty thousand classes is not lightweight; and num_labels means nothing there."""
    with pytest.raises(ValueError, match=f"needs a classifier, got toy with the head {head}"):
        LightweightTeacherLoss().bind(toy_anatomy(head=head), TEACHER)
    with pytest.raises(ValueError, match="items must be at least 1, got 0"):
        LightweightTeacherLoss(items=0)
