"""The task loss: it is the one that transformers' own heads compute, and it says what it lacks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from toy_models import text_inputs, toy_bert, toy_llama
from toy_representations import STUDENT, TEACHER
from transformers.trainer_pt_utils import LabelSmoother

from hfdistill.anatomy import Anatomy
from hfdistill.losses import TaskLoss
from hfdistill.representations import IGNORE_INDEX, Batch, Representations

NONE = Representations()
KEPT = torch.rand(3, 9, generator=torch.Generator().manual_seed(0)) > 0.5
LABELS: dict[str, tuple[dict[str, Any], Tensor]] = {
    "classes": ({}, torch.tensor([0, 2, 1])),
    "classes, one ignored": ({}, torch.tensor([0, IGNORE_INDEX, 1])),
    "regression": ({"classes": 1}, torch.tensor([0.5, -100.0, 2.0])),
    "several labels": (
        {"problem_type": "multi_label_classification"},
        torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]]),
    ),
    "tokens": ({"head": "ForTokenClassification"}, (torch.arange(27) % 3).view(3, 9).where(KEPT, IGNORE_INDEX)),
    "masked tokens": ({"head": "ForMaskedLM"}, (torch.arange(27) + 5).view(3, 9).where(KEPT, IGNORE_INDEX)),
}


def task(loss: TaskLoss, logits: Tensor, labels: Tensor | None, **batch: Any) -> Tensor:
    """The task loss of these logits and labels."""
    value: Tensor = loss(Representations(logits), NONE, Batch(len(logits), labels, **batch))
    return value


@pytest.mark.parametrize("kind", LABELS)
def test_it_is_the_loss_of_the_head(kind: str) -> None:
    """The student without distillation is the control: its loss must be what a plain Trainer would give it."""
    settings, labels = LABELS[kind]
    model = toy_bert(**settings)
    inputs = text_inputs()
    output = model(**inputs, labels=labels)
    loss = TaskLoss()
    loss.bind(Anatomy.of(model), TEACHER)
    torch.testing.assert_close(task(loss, output.logits, labels), output.loss)


def test_a_causal_model_is_shifted() -> None:
    """The logits of one token answer for the next; unshifted, a model would learn to copy."""
    model = toy_llama(head="ForCausalLM")
    inputs = text_inputs()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE_INDEX)
    output = model(**inputs, labels=labels)
    loss = TaskLoss()
    loss.bind(Anatomy.of(model), TEACHER)
    torch.testing.assert_close(task(loss, output.logits, labels), output.loss)
    assert loss.count(Batch(3, labels)) == 8 + 6 + 4


def test_smoothing_is_that_of_the_trainer() -> None:
    """`label_smoothing_factor` must mean under distillation what it means without."""
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, IGNORE_INDEX, 1])
    expected = LabelSmoother(epsilon=0.2)({"logits": logits}, labels)
    torch.testing.assert_close(task(TaskLoss(0.2), logits, labels), expected)
    torch.testing.assert_close(task(TaskLoss(), logits, labels, label_smoothing=0.2), expected)


def test_a_smoothing_of_its_own_goes_before_the_trainers() -> None:
    """0 is a choice, not the absence of one."""
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 2, 1])
    plain = F.cross_entropy(logits, labels)
    torch.testing.assert_close(task(TaskLoss(0.0), logits, labels, label_smoothing=0.2), plain)


def test_a_given_loss_is_taken_as_it_is() -> None:
    """A head of another kind, or a user's function, knows better than logits and labels."""
    given = torch.tensor(1.5, requires_grad=True)
    assert TaskLoss()(Representations(loss=given), NONE, Batch(2)) is given


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        (torch.tensor([0, IGNORE_INDEX, 1]), 2),
        (torch.tensor([-100.0, 0.0, 1.0]), 3),
        (torch.tensor([[0, 1], [IGNORE_INDEX, 2], [IGNORE_INDEX, IGNORE_INDEX]]), 3),
        (None, 3),
    ],
)
def test_it_counts_the_labels_that_are_not_ignored(labels: Tensor | None, count: int) -> None:
    """The weight of a micro-batch; -100.0 is a number like any other where numbers are learnt."""
    loss = TaskLoss()
    loss.bind(STUDENT, TEACHER)
    assert loss.count(Batch(3, labels)) == count


def test_binding_to_another_student_unshifts() -> None:
    """One objective may meet a causal student and then a classifier."""
    loss = TaskLoss()
    loss.bind(replace(STUDENT, head="ForCausalLM"), TEACHER)
    assert loss.shifted
    loss.bind(STUDENT, TEACHER)
    assert not loss.shifted


def test_missing_labels_and_logits_are_told() -> None:
    """An unlabelled batch is legitimate with other losses; the message must lead there."""
    with pytest.raises(ValueError, match=r"TaskLoss needs labels in the batch, got none.*leave it out"):
        task(TaskLoss(), torch.randn(2, 3), None)
    with pytest.raises(ValueError, match=r"TaskLoss needs logits of the student, got none"):
        TaskLoss()(NONE, NONE, Batch(2, torch.tensor([0, 1])))


def test_labels_of_another_shape_are_refused() -> None:
    """Broadcasting would train on something, silently."""
    with pytest.raises(
        ValueError, match=r"one label per row of logits, got logits \(2, 3\) and labels \(2, 4\).*problem_type"
    ):
        task(TaskLoss(), torch.randn(2, 3), torch.zeros(2, 4, dtype=torch.long))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_outside_its_range_is_refused(smoothing: float) -> None:
    """At 1 nothing of the label is left."""
    with pytest.raises(ValueError, match=rf"label_smoothing must be in \[0, 1\), got {smoothing}.*Use 0.1"):
        TaskLoss(smoothing)
