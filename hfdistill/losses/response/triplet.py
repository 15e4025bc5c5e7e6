"""Triplets of logits: nearer to the teacher than rows of other classes (Oki et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.functional.supervision import triplet
from hfdistill.losses.gathering import gathered_rows
from hfdistill.losses.logits import LogitLoss, Targets
from hfdistill.losses.method import Method, Paper
from hfdistill.schedules import Schedule


class TripletLoss(LogitLoss):
    """Bring a row's logits nearer to the teacher's of that row than those of a row of another class are.

    L = mean_rows max(0, |t(x) - s(x)| - |t(x) - s(x')| + margin): the anchor is the teacher's logits, the positive the
    student's, the negative the student's logits of x', drawn at random from the rows of the batch with another label.
    Rows without such a partner do not count. A batch of one class gives 0.

    Oki et al. 2020, Triplet Loss for Knowledge Distillation, https://arxiv.org/abs/2004.08116. There x' comes from
    the whole training set in a second pass; here from the batch.

    Shapes: logits (B, K), the same on both sides; labels (B,).

    Args:
        margin: > 0, in units of the logits; the authors' is 5.
        gather: draw partners from the rows of all processes instead of each process's own.
        weight: see DistillationLoss; the authors' is 2, beside soft targets at T = 1 and the labels.

    Raises:
        ValueError: margin <= 0, fewer than 2 classes, different numbers of classes or shapes, a head that answers for
            tokens, a batch without labels.
    """

    method = Method(
        papers=(
            Paper("Oki et al.", 2020, "Triplet Loss for Knowledge Distillation", "https://arxiv.org/abs/2004.08116"),
        ),
        evidence=("triplet", "hand/triplet"),
        restrictions=(
            "the same number of classes on both sides, in the same order",
            "needs class labels of rows",
            "at least 2 classes in a batch",
        ),
    )
    fewest_rows: int = 2
    labelled: ClassVar[bool] = True

    def __init__(self, margin: float = 5.0, gather: bool = False, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        if not margin > 0:
            raise ValueError(
                f"margin must be above 0, got {margin}: it is how much nearer than others a row must be. Use 5."
            )
        self.margin = margin
        self.gather = gather

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Refuse heads that cannot be compared."""
        super().bind(student, teacher)
        if self.token_level:
            raise ValueError(
                f"TripletLoss needs one class per row, got the head {student.head}, which answers for tokens: every "
                "pair of tokens in the batch would be a candidate. Use SoftTargetLoss for token-level heads."
            )

    def compare(self, student: Tensor, teacher: Tensor, targets: Targets) -> Tensor:
        """The triplets of the batch."""
        labels, valid = targets.labels, targets.mask
        if labels is None or valid is None:  # forward has refused this
            raise ValueError("TripletLoss reads the class labels, got none.")
        if self.gather:
            student, teacher, labels, valid = (gathered_rows(rows) for rows in (student, teacher, labels, valid))
        other = (labels[:, None] != labels) & valid[:, None] & valid  # (B, B)
        drawn = torch.rand(other.shape, device=other.device).masked_fill(~other, -1.0).argmax(dim=1)  # (B,)
        return triplet(teacher, student, student[drawn], self.margin, other.any(dim=1))
