"""Relational knowledge distillation: distances and angles between the rows of a batch (Park et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from hfdistill.functional.relation import angle_relation, distance_relation
from hfdistill.losses.batch_relation import BatchRelationLoss
from hfdistill.losses.layerwise import Layers
from hfdistill.losses.method import Method, Paper
from hfdistill.schedules import Schedule

RKD = Paper("Park et al.", 2019, "Relational Knowledge Distillation", "https://arxiv.org/abs/1904.05068")


class DistanceRelationLoss(BatchRelationLoss):
    """Match how far the rows of a batch are from each other (RKD-D).

    d_ij = |e_i - e_j| / mean over i ≠ j of it; L = sum over layers of mean over all pairs (i, j) of huber(d_student -
    d_teacher), pairs of a row with itself included. Rotations, shifts and a common scale of either side change
    nothing; the student's mean distance has a gradient too.

    Park et al. 2019, Relational Knowledge Distillation, https://arxiv.org/abs/1904.05068, section 3.2.1.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher), of which one vector per row is taken.

    Args:
        layers: which student layer learns from which teacher layer.
        pooling: "mean" of the real tokens, "cls", or "last" real token.
        gather: relate the rows of all processes.
        weight: see DistillationLoss; the code that most comparisons use has 25, the paper 1 for metric learning.

    Raises:
        ValueError: an unknown pooling; a layer map that does not fit the two depths.
    """

    method = Method(
        (RKD,), ("rkd/distance",), ("at least 2 rows in a batch", "depends on which rows share a batch: see gather")
    )
    fewest_rows: int = 2

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """Huber loss of the distances of one pair of layers."""
        return distance_relation(student, teacher, mask)


class AngleRelationLoss(BatchRelationLoss):
    """Match the angles of the triangles that the rows of a batch form (RKD-A).

    psi_ijk = cos of the angle at row i between rows j and k; L = sum over layers of mean over all triples (i, j, k) of
    huber(psi_student - psi_teacher). Rotations, shifts and any scale of either side change nothing.

    Park et al. 2019, Relational Knowledge Distillation, https://arxiv.org/abs/1904.05068, section 3.2.2. Drawing some
    of the rows i, for batches whose B^3 triples do not fit into memory, is ours.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher), of which one vector per row is taken; memory for
    each side A B (B + D), with A = B rows i or at most `vertices` of them.

    Args:
        layers: which student layer learns from which teacher layer.
        pooling: "mean" of the real tokens, "cls", or "last" real token.
        vertices: at most so many rows i, drawn anew for each batch by torch's generator; None: all of them.
        gather: relate the rows of all processes; all draw the same rows i.
        weight: see DistillationLoss; the code that most comparisons use has 50, the paper 2 for metric learning.

    Raises:
        ValueError: no vertices; an unknown pooling; a layer map that does not fit the two depths.
    """

    method = Method(
        (RKD,),
        ("rkd/angle",),
        ("at least 3 rows in a batch", "depends on which rows share a batch: see gather", "memory grows with B^3"),
    )
    fewest_rows: int = 3

    def __init__(
        self,
        layers: Layers = ((-1, -1),),
        pooling: str = "mean",
        vertices: int | None = None,
        gather: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, pooling, gather, weight)
        if vertices is not None and vertices < 1:
            raise ValueError(
                f"AngleRelationLoss needs at least 1 vertex, got {vertices}: without one there is no angle. Write "
                "vertices=None for all rows of the batch."
            )
        self.vertices = vertices

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """Huber loss of the angles of one pair of layers."""
        return angle_relation(student, teacher, mask, self._drawn(len(student), student.device, mask))

    def _drawn(self, rows: int, device: torch.device, mask: Tensor | None) -> Tensor | None:
        if self.vertices is None or self.vertices >= rows:
            return None
        lots = self.all_rows(torch.rand(rows, device=device))[:rows]  # the first process draws for all
        if mask is not None:
            lots = lots.masked_fill(~mask, -1.0)  # rows that count come first
        return lots.topk(self.vertices).indices
