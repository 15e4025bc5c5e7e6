"""Soft targets: values worked out by hand, temperature, reductions, what counts, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_representations import STUDENT, TEACHER, TOKENS, toy_anatomy

from hfdistill import functional
from hfdistill.losses import SoftTargetLoss
from hfdistill.representations import IGNORE_INDEX, Batch, Representations
from hfdistill.schedules import Linear

EVEN, SKEWED = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])  # 1/2, 1/2 and 3/4, 1/4


def soft(loss: SoftTargetLoss, student: Tensor, teacher: Tensor, labels: Tensor | None = None, **batch: Any) -> Tensor:
    """The soft-target loss of these logits."""
    value: Tensor = loss(Representations(student), Representations(teacher), Batch(len(student), labels, **batch))
    return value


def test_the_value_is_the_kl_from_the_teacher() -> None:
    """By hand: 3/4 log(3/2) + 1/4 log(1/2); the other direction would give another number."""
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert soft(SoftTargetLoss(1.0), EVEN, SKEWED).item() == pytest.approx(expected)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    cross = soft(SoftTargetLoss(1.0, "cross_entropy"), EVEN, SKEWED)
    assert cross.item() == pytest.approx(expected + entropy)


def test_temperature_softens_and_squares() -> None:
    """Logits T times as large at temperature T give T^2 times the value; unless the square is switched off."""
    plain = soft(SoftTargetLoss(1.0), EVEN, SKEWED)
    torch.testing.assert_close(soft(SoftTargetLoss(3.0), 3 * EVEN, 3 * SKEWED), 9 * plain)
    torch.testing.assert_close(soft(SoftTargetLoss(3.0, scale_by_temperature=False), 3 * EVEN, 3 * SKEWED), plain)


def test_temperature_may_follow_the_training() -> None:
    """A scheduled temperature is read at the batch's progress."""
    loss = SoftTargetLoss(Linear(4.0, 2.0))
    at_end = soft(loss, EVEN, SKEWED, progress=1.0)
    torch.testing.assert_close(at_end, soft(SoftTargetLoss(2.0), EVEN, SKEWED))
    assert at_end != soft(loss, EVEN, SKEWED, progress=0.0)


def test_elementmean_is_the_mean_over_classes_too() -> None:
    """PKD's weights mean this reduction; it is K times smaller."""
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    expected = soft(SoftTargetLoss(), student, teacher) / 5
    torch.testing.assert_close(soft(SoftTargetLoss(reduction="elementmean"), student, teacher), expected)


def test_mse_compares_the_logits() -> None:
    """Ba and Caruana's regression: divided by T, and never multiplied by T^2."""
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    expected = (student - teacher).square().mean() / 4
    torch.testing.assert_close(soft(SoftTargetLoss(2.0, "mse"), student, teacher), expected)


@pytest.mark.parametrize("divergence", ["kl", "cross_entropy", "mse"])
def test_one_output_is_regression(divergence: str) -> None:
    """A softmax over one class is always 1: STS-B would silently learn nothing from its teacher."""
    student, teacher = torch.randn(4, 1), torch.randn(4, 1)
    loss = SoftTargetLoss(3.0, divergence)
    expected = (student - teacher).square().mean()
    torch.testing.assert_close(soft(loss, student, teacher, torch.randn(4)), expected)


def test_ignored_rows_do_not_count() -> None:
    """A row without a label is excluded from every loss, as in transformers."""
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    labels = torch.tensor([1, IGNORE_INDEX, 0])
    kept = [0, 2]
    loss = SoftTargetLoss()
    torch.testing.assert_close(soft(loss, student, teacher, labels), soft(loss, student[kept], teacher[kept]))
    assert loss.count(Batch(3, labels)) == 2


@pytest.mark.parametrize("labelled", [True, False])
def test_tokens_count_by_label_or_else_by_mask(labelled: bool) -> None:
    """Without labels there is still the padding, which must not teach."""
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    labels = torch.tensor([[0, IGNORE_INDEX, IGNORE_INDEX], [IGNORE_INDEX, 2, 1]]) if labelled else None
    chosen = mask.bool() if labels is None else labels != IGNORE_INDEX
    loss = SoftTargetLoss()
    loss.bind(replace(STUDENT, head=TOKENS), replace(TEACHER, head=TOKENS))
    expected = soft(loss, student[chosen], teacher[chosen])
    torch.testing.assert_close(soft(loss, student, teacher, labels, mask=mask), expected)
    assert loss.count(Batch(2, labels, mask)) == int(chosen.sum())


def test_classes_switched_off_on_both_sides_add_nothing() -> None:
    """A teacher that masks classes by -inf is legitimate; 0 times infinity is not."""
    student = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    value = soft(SoftTargetLoss(1.0), student, torch.tensor([[1.0, 0.0, -torch.inf]]))
    value.backward()
    torch.testing.assert_close(value, soft(SoftTargetLoss(1.0), student[:, :2], torch.tensor([[1.0, 0.0]])))
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_other_numbers_of_classes_are_refused_when_bound() -> None:
    """Before the first batch, with both numbers and both ways out."""
    with pytest.raises(
        ValueError,
        match=r"same number of classes.*got 2 \(student\) and 3 \(teacher\).*undefined.*num_labels=3.*label_map",
    ):
        SoftTargetLoss().bind(replace(STUDENT, classes=2), TEACHER)


def test_other_shapes_are_refused() -> None:
    """Heads of another kind may agree in the number of classes; broadcasting would compare tokens with rows."""
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) \(student\) and \(2, 5, 3\) \(teacher\).*batch"):
        soft(SoftTargetLoss(), torch.randn(2, 3), torch.randn(2, 5, 3))


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_model_without_a_head_is_named(side: str) -> None:
    """A body (BertModel) gives no logits; which of the two lacks them must be said."""
    given = {"student": torch.randn(2, 3), "teacher": torch.randn(2, 3)} | {side: None}
    with pytest.raises(ValueError, match=rf"logits of both models, but the {side} gave none.*its task head"):
        SoftTargetLoss()(Representations(given["student"]), Representations(given["teacher"]), Batch(2))


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_temperatures_that_are_not_positive_are_refused(temperature: float) -> None:
    """At 0 all is NaN, below it the teacher's worst class becomes the target."""
    with pytest.raises(ValueError, match=rf"temperature must be above 0, got {temperature}: logits.*Use 1"):
        SoftTargetLoss(temperature)


def test_a_temperature_that_is_no_number_is_refused() -> None:
    """A quoted number in YAML; Python's own message would be about an operator."""
    with pytest.raises(TypeError, match=r"needs a number as value, got '4' \(str\)"):
        SoftTargetLoss("4")  # type: ignore[arg-type]


def test_unknown_words_list_the_accepted_ones() -> None:
    """A misspelt divergence must not fall back on the KL."""
    with pytest.raises(ValueError, match=r"divergence must be one of 'kl', 'cross_entropy', 'mse', got 'ce'"):
        SoftTargetLoss(divergence="ce")
    with pytest.raises(ValueError, match=r"reduction must be one of 'mean', 'elementmean', got 'sum'"):
        SoftTargetLoss(reduction="sum")


def test_padding_on_the_left_predicts_nothing() -> None:
    """The place before the first token is labelled with it, but what stands there is padding."""
    causal = toy_anatomy(head="ForCausalLM")
    loss = SoftTargetLoss()
    loss.bind(causal, causal)
    labels, mask = torch.tensor([[-100, 1, 2, 0]]), torch.tensor([[0, 1, 1, 1]])
    logits = torch.randn(2, 1, 4, 3)
    padded = logits.clone()
    padded[:, :, 0] = 1e9
    values = [
        loss(Representations(ours), Representations(theirs), Batch(1, labels, mask))
        for ours, theirs in (logits, padded)
    ]
    torch.testing.assert_close(values[0], values[1])
    assert loss.count(Batch(1, labels, mask)) == 2


def test_a_causal_position_counts_where_the_token_after_it_is_labelled() -> None:
    """With a masked prompt the first answer token is predicted at the prompt's end, which is labelled -100."""
    causal = toy_anatomy(head="ForCausalLM")
    loss = SoftTargetLoss(temperature=1.0)
    loss.bind(causal, causal)
    student, teacher = torch.randn(1, 4, 3), torch.randn(1, 4, 3)
    labels = torch.tensor([[-100, -100, 2, 1]])
    batch = Batch(1, labels=labels, mask=torch.ones(1, 4, dtype=torch.long))
    value = loss(Representations(logits=student), Representations(logits=teacher), batch)
    expected = functional.soft_target_kl(student[:, 1:3], teacher[:, 1:3])
    torch.testing.assert_close(value, expected)
    assert loss.count(batch) == 2
