"""Logit standardisation: soft targets of logits without their mean and size (Sun et al. 2024)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hfdistill.functional.classes import standardized_kl
from hfdistill.losses.logits import SoftenedLogitLoss, Targets
from hfdistill.losses.method import Method, Paper
from hfdistill.schedules import Schedule


class StandardizedLoss(SoftenedLogitLoss):
    """Match the teacher's class distribution after both sides' logits are standardised, row by row.

    L = T^2 mean_rows KL(softmax(z(teacher) / T) || softmax(z(student) / T)), z(x) = (x - mean x) / (1e-7 + sd x) over
    the classes of a row, sd unbiased (K - 1). The student need not reach the teacher's range of logits: a x + b with
    a > 0 is the same answer on either side. Rows and tokens labelled -100 do not count.

    Sun et al. 2024, Logit Standardization in Knowledge Distillation, https://arxiv.org/abs/2403.01427; read in the
    authors' code. Over a large vocabulary mean and deviation are those of the unlikely tokens.

    Shapes: logits (B, K) or (B, N, K), the same on both sides.

    Args:
        temperature: the base T > 0, or a Schedule.
        weight: see DistillationLoss; the authors' is 9.

    Raises:
        ValueError: T <= 0, fewer than 3 classes, different numbers of classes or shapes.
        TypeError: `temperature` is neither a number nor a Schedule.
    """

    method = Method(
        papers=(
            Paper(
                "Sun et al.",
                2024,
                "Logit Standardization in Knowledge Distillation",
                "https://arxiv.org/abs/2403.01427",
            ),
        ),
        evidence=("logit_std/T2",),
        restrictions=(
            "the same number of classes on both sides, in the same order",
            "at least 3 classes: two standardised logits are always 0.707 and -0.707",
        ),
    )
    fewest_classes: ClassVar[int] = 3

    def __init__(self, temperature: float | Schedule = 2.0, weight: float | Schedule = 1.0) -> None:
        super().__init__(temperature, weight)

    def compare(self, student: Tensor, teacher: Tensor, targets: Targets) -> Tensor:
        """The divergence from the teacher's standardised logits."""
        return standardized_kl(student, teacher, self.temperature(targets.progress), targets.mask)
