"""The labels: the loss a student would have without a teacher."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hfdistill.anatomy import Anatomy
from hfdistill.functional.supervision import mixed_cross_entropy
from hfdistill.losses.base import DistillationLoss
from hfdistill.losses.method import Method
from hfdistill.representations import IGNORE_INDEX, Batch, Needs, Representations
from hfdistill.schedules import Schedule

_SHIFTED = "ForCausalLM"


class TaskLoss(DistillationLoss):
    """The task's own loss on the labels: cross-entropy, or squared error for a head with one output.

    L = mean over labels that are not -100 of CE(student logits, label); mean of (logit - label)^2 where K = 1; mean
    binary cross-entropy for float labels (B, K). Causal language models are shifted by one token. Where the Trainer
    has a `compute_loss_func`, or the head is of another kind (question answering), that loss is taken as it is. Where
    the student has a head for the labels alone beside one for the teacher (DeiT), its logits are those of that head.
    Of mixed rows it learns the labels of both, each as much as its row is in the mixture (see mixed_cross_entropy).

    Shapes: logits (B, K) with labels (B,), (B, 1) or (B, K); logits (B, N, K) with labels (B, N).

    Args:
        label_smoothing: share of the target spread over all classes, 0 to 1; None takes the Trainer's
            `label_smoothing_factor`.
        weight: see DistillationLoss.

    Raises:
        ValueError: the batch has no labels, or their shape does not fit the logits.
    """

    labels_alone: ClassVar[bool] = True
    method = Method(
        evidence=(
            "hinton_total",
            "equal to the loss of transformers' own heads in tests/losses/test_task.py",
        ),
        restrictions=(
            "classification, regression (one output), several labels per row, token classification, masked and causal "
            "language models from logits and labels",
            "of other heads (question answering) the loss that the head returns",
        ),
    )

    def __init__(self, label_smoothing: float | None = None, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        if label_smoothing is not None and not 0.0 <= label_smoothing < 1.0:
            raise ValueError(
                f"label_smoothing must be in [0, 1), got {label_smoothing}: it is the share of the target that goes "
                "to all classes. Use 0.1, or 0 to switch it off."
            )
        self.label_smoothing = label_smoothing
        self.shifted = False

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Note whether the student predicts the next token."""
        self.shifted = student.head == _SHIFTED

    def needs(self) -> tuple[Needs, Needs]:
        """The student's logits, nothing of the teacher."""
        return Needs(logits=True), Needs()

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The task loss of the student."""
        if student.loss is not None and batch.partner_labels is None:
            return student.loss
        logits, labels = student.labelled_logits, batch.labels
        if labels is None:
            raise ValueError(
                "TaskLoss needs labels in the batch, got none. Without labels a student can still learn from its "
                "teacher: give 'task' the weight 0, or leave it out."
            )
        if logits is None:
            raise ValueError(
                "TaskLoss needs logits of the student, got none: a model without a head answers nothing. Load the "
                "student with the head of its task (AutoModelForSequenceClassification, ...)."
            )
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        return self._loss(logits, labels, batch)

    def count(self, batch: Batch) -> Tensor:
        """Labels that are not ignored."""
        if self.shifted and batch.labels is not None:
            return (batch.labels[:, 1:] != IGNORE_INDEX).sum().float()
        return batch.label_count()

    def _loss(self, logits: Tensor, labels: Tensor, batch: Batch) -> Tensor:
        partners, shares = batch.partner_labels, batch.partner_shares
        if logits.shape[-1] == 1 and labels.numel() == logits.numel():  # regression
            targets = labels.flatten().to(logits.dtype)
            if partners is not None and shares is not None:
                targets = targets + shares.to(targets) * (partners.flatten() - targets)
            return F.mse_loss(logits.flatten(), targets)
        if labels.is_floating_point() and labels.shape == logits.shape:  # several labels per row
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        if labels.shape != logits.shape[:-1]:
            raise ValueError(
                f"TaskLoss needs one label per row of logits, got logits {tuple(logits.shape)} and labels "
                f"{tuple(labels.shape)}. Cross-entropy pairs them one to one; check the head (num_labels, "
                "problem_type) and the data collator."
            )
        smoothing = batch.label_smoothing if self.label_smoothing is None else self.label_smoothing
        if partners is not None and shares is not None:
            return mixed_cross_entropy(logits, labels.long(), partners.long(), shares, smoothing)
        total = F.cross_entropy(
            logits.flatten(0, -2),  # (rows, K)
            labels.flatten().long(),  # (rows,)
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=smoothing,
        )
        return total / (labels != IGNORE_INDEX).sum().clamp(min=1)
