"""Shaped supervision: values by hand, invariances, limits, what counts and what is finite, errors."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from hfdistill.functional.response import soft_target_cross_entropy, soft_target_kl
from hfdistill.functional.supervision import (
    conditional_teacher,
    deception,
    discrimination,
    label_smoothing,
    prime_aware,
    probability_shift,
    triplet,
)

PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.tuples(st.integers(2, 6), st.integers(2, 6))  # B, K
GARBAGE = (float("nan"), float("inf"), -float("inf"), 1e30)


@dataclass(frozen=True)
class Formula:
    """A formula on rows (B, K) of two sides with a mask (B,); labels and a third input are made of the row's place."""

    name: str
    call: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    logits: bool = True  # else vectors, which no infinity stands in


def labels_of(rows: Tensor) -> Tensor:
    return torch.arange(len(rows)) % rows.shape[1]


FORMULAS = (
    Formula("conditional_teacher", lambda s, t, m: conditional_teacher(s, t, labels_of(s), 2.0, m)),
    Formula("conditional_teacher hard", lambda s, t, m: conditional_teacher(s, t, labels_of(s), 2.0, m, False)),
    Formula("probability_shift", lambda s, t, m: soft_target_kl(s, probability_shift(t, labels_of(t)), 2.0, m)),
    Formula("label_smoothing", lambda s, t, m: soft_target_kl(s, label_smoothing(t, labels_of(t), 2.0), 2.0, m)),
    Formula("triplet", lambda s, t, m: triplet(t, s, s.flip(-1), 5.0, m)),
    Formula("prime_aware", lambda s, t, m: prime_aware(s, t, s.flip(-1), m), logits=False),
)
EVERY = pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.name)


def drawn(seed: int, rows: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """A student's logits, with a gradient, a teacher's, and labels."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher, torch.randint(classes, (rows,), generator=generator)


def gradient_of(value: Tensor, student: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, student)
    return gradient


# ---- what all of them keep ----


@EVERY
@PROPERTY
@given(seed=SEEDS, sizes=SIZES, garbage=st.sampled_from(GARBAGE))
def test_masked_rows_never_count(formula: Formula, seed: int, sizes: tuple[int, int], garbage: float) -> None:
    """What a kernel left in the padding must reach neither the value nor the gradient."""
    student, teacher, _ = drawn(seed, *sizes)
    mask = torch.arange(sizes[0]) % 2 == 0
    value = formula.call(student, teacher, mask)
    dirty = student.detach().masked_fill(~mask[:, None], garbage).requires_grad_()
    dirty_value = formula.call(dirty, teacher.masked_fill(~mask[:, None], garbage), mask.float())
    assert torch.equal(dirty_value, value)
    gradient = gradient_of(dirty_value, dirty)
    assert torch.equal(gradient, gradient_of(value, student))
    assert not gradient[~mask].any()


@EVERY
def test_nothing_valid_is_zero_with_a_gradient(formula: Formula) -> None:
    """The last batch may hold nothing that counts: it must train nothing, and break nothing."""
    student = torch.full((2, 3), torch.nan, requires_grad=True)
    value = formula.call(student, torch.zeros(2, 3), torch.zeros(2))
    assert value == 0
    assert torch.equal(gradient_of(value, student), torch.zeros(2, 3))


@EVERY
def test_the_teacher_gets_no_gradient_and_the_student_the_right_one(formula: Formula) -> None:
    """What is detached or filled by mistake shows as a wrong derivative, and nowhere else."""
    student, teacher, _ = drawn(3, 4, 3)
    teacher.requires_grad_()
    mask = torch.tensor([1, 1, 0, 1])
    value = formula.call(student, teacher, mask)
    assert torch.autograd.grad(value, teacher, allow_unused=True)[0] is None
    assert torch.autograd.gradcheck(lambda side: formula.call(side, teacher, mask), student)
    assert torch.autograd.gradgradcheck(lambda side: formula.call(side, teacher, mask), student)


@EVERY
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(formula: Formula, half: torch.dtype) -> None:
    """Eight bits of mantissa lose what two close models differ by, under autocast too."""
    student, teacher = (side.detach().to(half) for side in drawn(0, 4, 3)[:2])
    expected = formula.call(student.float(), teacher.float(), None)
    with torch.autocast("cpu", torch.bfloat16):
        within = formula.call(student, teacher, None)
    assert within.dtype == torch.float32
    torch.testing.assert_close(within, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("formula", [f for f in FORMULAS if f.logits], ids=lambda formula: formula.name)
@pytest.mark.parametrize("shut_out", [False, True])
def test_extreme_logits_are_finite(formula: Formula, shut_out: bool) -> None:
    """A confident model, or a class that both heads shut out with -inf, must not end a run in NaN."""
    student, teacher, _ = drawn(1, 4, 5)
    student, teacher = (1e4 * side.detach().sign() for side in (student, teacher))
    if shut_out:
        student[:, -1], teacher[:, -1] = -torch.inf, -torch.inf
        if formula.name == "triplet":
            student[:, 0], teacher[:, 0] = -torch.inf, -torch.inf  # its negatives are the flipped rows
    student.requires_grad_()
    value = formula.call(student, teacher, None)
    assert value.isfinite()
    assert gradient_of(value, student).isfinite().all()


# ---- the conditional teacher ----


@PROPERTY
@given(seed=SEEDS, sizes=SIZES, temperature=st.sampled_from([1.0, 3.0]))
def test_a_teacher_that_is_always_right_gives_soft_targets(
    seed: int, sizes: tuple[int, int], temperature: float
) -> None:
    """Nothing is left of the labels then; one that is always wrong leaves nothing but them."""
    student, teacher, labels = drawn(seed, *sizes)
    soft = conditional_teacher(student, teacher, teacher.argmax(-1), temperature, soften_labels=False)
    torch.testing.assert_close(soft, soft_target_cross_entropy(student, teacher, temperature))
    wrong = teacher.scatter(1, labels[:, None], -100.0)
    hard = conditional_teacher(student, wrong, labels, temperature, soften_labels=False)
    torch.testing.assert_close(hard, cross_entropy(student, labels))
    softened = conditional_teacher(student, wrong, labels, temperature)
    torch.testing.assert_close(softened, cross_entropy(student / temperature, labels))


@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_gradient_of_the_conditional_teacher_in_closed_form(seed: int, sizes: tuple[int, int]) -> None:
    """(p_s - q) / B, with q chosen row by row: what the teacher says about rows it gets wrong never arrives."""
    student, teacher, labels = drawn(seed, *sizes)
    right = (teacher.argmax(-1) == labels)[:, None]
    one_hot = torch.nn.functional.one_hot(labels, sizes[1]).double()
    target = torch.where(right, teacher.softmax(-1), one_hot)
    gradient = gradient_of(conditional_teacher(student, teacher, labels), student)
    torch.testing.assert_close(gradient, (student.softmax(-1) - target).detach() / sizes[0])


def test_of_equal_logits_the_first_is_the_answer() -> None:
    """A tie must be decided, and the same way on every run."""
    student, teacher = torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 0.0]])
    soft = conditional_teacher(student, teacher, torch.tensor([0]))
    torch.testing.assert_close(soft, soft_target_cross_entropy(student, teacher))
    student = torch.tensor([[2.0, 0.0, 0.0]])
    torch.testing.assert_close(
        conditional_teacher(student, teacher, torch.tensor([1])), cross_entropy(student, torch.tensor([1]))
    )


def test_rows_without_a_label_are_left_out() -> None:
    """-100 is no class: neither of the choices is possible there."""
    student, teacher, labels = drawn(0, 4, 3)
    value = conditional_teacher(student, teacher, torch.where(torch.arange(4) < 2, labels, -100))
    torch.testing.assert_close(value, conditional_teacher(student[:2], teacher[:2], labels[:2]))


# ---- triplets ----


def test_triplets_are_the_margin_where_negative_and_positive_are_one() -> None:
    """|a - p| cancels |a - n|; and a negative that is further away by the margin teaches nothing."""
    student, teacher, _ = drawn(0, 4, 3)
    torch.testing.assert_close(triplet(teacher, student, student, 2.5), torch.tensor(2.5, dtype=torch.float64))
    far = teacher + 100
    value = triplet(teacher, student, far, 2.5)
    assert value == 0
    assert not gradient_of(value, student).any()
    assert triplet(teacher, student, far, 1000.0) > 0


@PROPERTY
@given(seed=SEEDS, margin=st.floats(0.5, 8))
def test_triplets_are_those_of_torch(seed: int, margin: float) -> None:
    """Anchor teacher, positive and negative student, as the authors' code has them; swapped they differ."""
    student, teacher, _ = drawn(seed, 5, 4)
    expected = torch.nn.functional.triplet_margin_loss(teacher, student, student.flip(0), margin)
    torch.testing.assert_close(triplet(teacher, student, student.flip(0), margin), expected)
    mask = torch.tensor([True, False, True, True, False])
    kept = triplet(teacher[mask], student[mask], student.flip(0)[mask], margin)
    torch.testing.assert_close(triplet(teacher, student, student.flip(0), margin, mask), kept)


# ---- prime-aware regression ----


def test_without_variance_prime_aware_is_the_squared_difference() -> None:
    """Where v = 0 it weighs every entry by 1 / (1 + 1e-6)."""
    student, teacher, _ = drawn(0, 4, 3)
    value = prime_aware(student, teacher, torch.zeros_like(student))
    torch.testing.assert_close(value, (student - teacher).square().mean() / (1 + 1e-6))


@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_the_best_log_variance_is_the_log_of_the_square(seed: int, sizes: tuple[int, int]) -> None:
    """There its gradient is 0 (but for the 1e-6), and the loss least: 1 + log (t - s)^2."""
    student, teacher, _ = drawn(seed, *sizes)
    residual = (student - teacher).detach().square() + 0.1
    shifted = teacher + residual.sqrt()
    best = residual.log().requires_grad_()
    value = prime_aware(shifted, teacher, best)
    assert gradient_of(value, best).abs().max() < 1e-4
    torch.testing.assert_close(value, (1 + residual.log()).mean(), rtol=1e-4, atol=1e-4)
    for step in (-0.5, 0.5):
        assert prime_aware(shifted, teacher, best + step) > value


@pytest.mark.parametrize("log_variance", [-1e4, -20.0, 80.0, 1e4])
def test_any_log_variance_is_finite(log_variance: float) -> None:
    """The exponential overflows at 89, and inf / inf is NaN; below the floor the weight is 1e6 at most."""
    student = torch.tensor([[1.0, 2.0]], requires_grad=True)
    v = torch.full((1, 2), log_variance, requires_grad=True)
    value = prime_aware(student, torch.zeros(1, 2), v)
    expected = 2.5 / (1e-6 + math.exp(log_variance)) if log_variance < 100 else 0.0
    assert value.item() == pytest.approx(expected + log_variance)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, [student, v]))


def test_a_log_variance_of_another_shape_is_refused() -> None:
    """Broadcast, one variance would silently stand for all entries."""
    with pytest.raises(ValueError, match=r"one shape on both sides, got \[2, 1\].*\[2, 3\]"):
        prime_aware(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1))


# ---- a discriminator ----


def test_discriminator_and_student_pull_the_score_apart() -> None:
    """At score 0, D = 1/2: 2 log 2 and log 2; D lowers the student's score, the student raises it."""
    teacher, student = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    value = discrimination(teacher, student)
    assert value.item() == pytest.approx(2 * math.log(2.0))
    up, down = torch.autograd.grad(value, [teacher, student])
    torch.testing.assert_close((up, down), (torch.full((4,), -0.125), torch.full((4,), 0.125)))
    passed = deception(student)
    assert passed.item() == pytest.approx(math.log(2.0))
    torch.testing.assert_close(gradient_of(passed, student), torch.full((4,), -0.125))


def test_scores_that_do_not_count() -> None:
    """Masked scores hold anything; all masked is 0."""
    scores = torch.tensor([0.0, torch.nan])
    mask = torch.tensor([1, 0])
    assert discrimination(scores, scores, mask).item() == pytest.approx(2 * math.log(2.0))
    assert deception(scores, mask).item() == pytest.approx(math.log(2.0))
    assert discrimination(scores, scores, torch.zeros(2)) == deception(scores, torch.zeros(2)) == 0
    extreme = torch.tensor([1e4, -1e4], dtype=torch.float16)
    assert discrimination(extreme, -extreme).isfinite()
    assert deception(extreme).dtype == torch.float32
