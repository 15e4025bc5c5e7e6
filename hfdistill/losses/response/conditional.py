"""Conditional teacher-student learning: trust the teacher where it is right (Meng et al. 2019)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hfdistill.functional.supervision import conditional_teacher
from hfdistill.losses.logits import SoftenedLogitLoss, Targets
from hfdistill.losses.method import Method, Paper
from hfdistill.schedules import Schedule


class ConditionalTeacherLoss(SoftenedLogitLoss):
    """Learn from the teacher where its answer is the label, and from the label where it is not.

    L = mean over labelled rows of -sum_k q_k log softmax(student / T)_k, with q = softmax(teacher / T) where
    argmax(teacher) = label, else 1 at the label and T = 1. Of equal logits the first is the teacher's answer. Heads
    that label tokens choose token by token. The targets hold the labels already: no task loss is needed beside it.

    Meng et al. 2019, Conditional Teacher-Student Learning, https://arxiv.org/abs/1904.12399. The formula is written
    from the abstract, which determines it; that rows which learn the label take T = 1 at any temperature is ours.

    Shapes: logits (B, K) or (B, N, K), the same on both sides; labels without K.

    Args:
        temperature: T > 0 of the rows that learn from the teacher, or a Schedule; the paper does not soften.
        weight: see DistillationLoss.

    Raises:
        ValueError: T <= 0, fewer than 2 classes, different numbers of classes or shapes, a batch without labels.
        TypeError: `temperature` is neither a number nor a Schedule.
    """

    method = Method(
        papers=(
            Paper("Meng et al.", 2019, "Conditional Teacher-Student Learning", "https://arxiv.org/abs/1904.12399"),
        ),
        evidence=("conditional_ts",),
        restrictions=("the same number of classes on both sides, in the same order", "needs class labels"),
        unverified="formula written from the abstract, which determines it",
    )
    labelled: ClassVar[bool] = True

    def __init__(self, temperature: float | Schedule = 1.0, weight: float | Schedule = 1.0) -> None:
        super().__init__(temperature, weight)

    def compare(self, student: Tensor, teacher: Tensor, targets: Targets) -> Tensor:
        """The cross-entropy with the teacher's distribution, or with the label."""
        if targets.labels is None:  # forward has refused this
            raise ValueError("ConditionalTeacherLoss reads the class labels, got none.")
        temperature = self.temperature(targets.progress)
        return conditional_teacher(student, teacher, targets.labels, temperature, targets.mask, soften_labels=False)
