"""The objective looked at, not trained on: what each term is on a batch of the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy
from hfdistill.attachment import given_task_loss
from hfdistill.capture import capture
from hfdistill.losses.task import TaskLoss
from hfdistill.objective import Objective
from hfdistill.representations import Batch, Representations


@torch.no_grad()
def observed_terms(
    student: nn.Module,
    objective: Objective,
    inputs: Mapping[str, Any],
    taught: Representations,
    batch: Batch,
    task_loss: Callable[[Any, Tensor | None], Tensor] | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every term of the objective on one batch, and by how many valid items it counts.

    Args:
        student: the model itself; one forward pass of it is made.
        objective: bound to student and teacher.
        inputs: of the student.
        taught: what the teacher showed of this batch.
        batch: what a loss may look at.
        task_loss: the user's function of (output, labels), or None.

    Returns:
        Name -> unweighted value, and name -> its count.
    """
    output, shown = capture(student, inputs, objective.needs(batch.progress)[0])
    shown.loss = given_task_loss(output, batch.labels, task_loss, Anatomy.of(student))
    terms = objective(shown, taught, batch).terms
    counts = dict(zip(objective, objective.counts([batch]), strict=True))
    return terms, {name: counts[name].to(value) for name, value in terms.items()}


def observed_task_loss(output: Mapping[str, Any], batch: Batch) -> Tensor:
    """The task loss of a model's answer, where its forward takes no labels and so computes none (DeiT with two heads).

    Args:
        output: of the model; its `logits` are the answer that counts when it is used.
        batch: with labels.

    Raises:
        ValueError: no logits, no labels, or shapes that do not fit; see TaskLoss.
    """
    loss: Tensor = TaskLoss()(Representations(logits=output.get("logits")), Representations(), batch)
    return loss
