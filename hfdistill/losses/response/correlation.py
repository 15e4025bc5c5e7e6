"""Distillation from a stronger teacher: correlations instead of divergences (Huang et al. 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.functional.classes import class_correlation
from hfdistill.losses.gathering import gathered_rows
from hfdistill.losses.logits import SoftenedLogitLoss, Targets
from hfdistill.losses.method import Method, Paper
from hfdistill.schedules import Schedule


class CorrelationLoss(SoftenedLogitLoss):
    """Match how the teacher ranks the classes of a row, and the rows of a class, whatever the size of its numbers.

    L = T^2 (beta inter + gamma intra) of P = softmax(logits / T), rows by classes, with Pearson's correlation rho
    (1e-8 added to its denominator): inter = 1 - mean over rows of rho(P_s[i, :], P_t[i, :]), intra = 1 - mean over
    classes of rho(P_s[:, k], P_t[:, k]). In [0, 2 (beta + gamma)] T^2, and 0 at equality up to the 1e-8. Tokens are
    rows; those labelled -100, or without labels the padded ones, do not count. Through intra it depends on which rows
    share a batch: noisy where they are few, 0 with fewer than 3. Gradient accumulation does not enlarge the batch,
    `gather` does.

    Huang et al. 2022, Knowledge Distillation from A Stronger Teacher, https://arxiv.org/abs/2205.10536; read in the
    authors' code, whose beta = gamma = T = 1 are the defaults here. For CIFAR the paper has T = 4 and beta = gamma = 2
    (from memory, not verified).

    Shapes: logits (B, K) or (B, N, K), the same on both sides.

    Args:
        beta: weight of the classes of a row.
        gamma: weight of the rows of a class.
        temperature: T > 0, or a Schedule.
        gather: correlate the rows of all processes instead of each process's own.
        weight: see DistillationLoss.

    Raises:
        ValueError: T <= 0, fewer than 3 classes, different numbers of classes or shapes.
        TypeError: `temperature` is neither a number nor a Schedule.
    """

    method = Method(
        papers=(
            Paper(
                "Huang et al.",
                2022,
                "Knowledge Distillation from A Stronger Teacher",
                "https://arxiv.org/abs/2205.10536",
            ),
        ),
        evidence=("dist/tau1", "dist/tau4"),
        restrictions=(
            "the same number of classes on both sides, in the same order",
            "at least 3 classes: two probabilities always correlate by 1 or -1, so one of its terms teaches nothing",
            "its value depends on the batch: the rows of a class are those of the micro-batch, or with `gather` those "
            "of all processes, and accumulation adds none: with fewer than 3 rows this term is 0",
        ),
        unverified="T = 4 and beta = gamma = 2 as the paper's values for CIFAR",
    )
    fewest_classes: ClassVar[int] = 3

    def __init__(
        self,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float | Schedule = 1.0,
        gather: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(temperature, weight)
        self.beta = beta
        self.gamma = gamma
        self.gather = gather

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Refuse heads that cannot be compared; tokens are rows, so one row of text is enough of them."""
        super().bind(student, teacher)
        self.fewest_rows = 1 if self.token_level else 3

    def compare(self, student: Tensor, teacher: Tensor, targets: Targets) -> Tensor:
        """One minus the correlations with the teacher's probabilities."""
        mask = torch.ones_like(student[..., 0], dtype=torch.bool) if targets.mask is None else targets.mask.bool()
        if self.gather:  # numbers of tokens may differ between processes: (B, N, K) -> (rows, K)
            student, teacher = (gathered_rows(side.flatten(0, -2)) for side in (student, teacher))
            mask = gathered_rows(mask.flatten())
        return class_correlation(student, teacher, self.temperature(targets.progress), self.beta, self.gamma, mask)
