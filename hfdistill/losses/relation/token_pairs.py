"""Pair-wise structure: which tokens of a row are alike (Liu et al. 2019)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from hfdistill.functional.activation import token_similarity
from hfdistill.losses.layerwise import Layers, LayerwiseLoss
from hfdistill.losses.method import Method
from hfdistill.losses.papers import STRUCTURED
from hfdistill.representations import Batch
from hfdistill.schedules import Schedule


class TokenPairLoss(LayerwiseLoss):
    """Match how alike the tokens of a row are to each other, whatever the widths.

    L = sum over pairs of layers of mean_rows (1 / n^2) sum_(i, j) (cos(x_i, x_j) - cos(y_i, y_j))^2 over the n real
    tokens of a row, x the student's states and y the teacher's. The patches of an image are max-pooled to a few nodes
    first; text is not pooled. The gradient is that of the whole formula: the authors' code takes the lengths |x| as
    constants, which leaves its part along x in.

    Liu et al. 2019, Structured Knowledge Distillation for Semantic Segmentation, https://arxiv.org/abs/1903.04197,
    the pair-wise loss.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher); of images the patches only.

    Args:
        layers: which student layer learns from which teacher layer; by default the last from the last.
        nodes: an image's patches become nodes x nodes places, 2 in the paper's code (a pool of half the side); 0: no
            pooling.
        weight: see DistillationLoss.

    Raises:
        ValueError: negative nodes; a layer map that does not fit the two depths.
    """

    projects: ClassVar[bool] = False
    places: ClassVar[bool] = True
    method: ClassVar[Method | None] = Method(
        papers=(STRUCTURED,),
        evidence=("spatial_pairwise", "spatial_pairwise/masked"),
        restrictions=("the same places on both sides",),
    )

    def __init__(self, layers: Layers = ((-1, -1),), nodes: int = 2, weight: float | Schedule = 1.0) -> None:
        super().__init__(layers, weight=weight)
        if nodes < 0:
            raise ValueError(f"nodes must be 0 (no pooling) or a side of at least 1, got {nodes}. The paper uses 2.")
        self.nodes = nodes

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """The difference of the similarities of one pair of layers."""
        sides = self.sides(student.shape[1]) if self.nodes else None
        if sides is not None:
            student, teacher, mask = self._pooled(student, sides), self._pooled(teacher, sides), None
        return token_similarity(student, teacher, mask)

    def count(self, batch: Batch) -> Tensor:
        """Rows."""
        return batch.row_count()

    def _pooled(self, states: Tensor, sides: tuple[int, int]) -> Tensor:
        nodes = [min(self.nodes, side) for side in sides]
        grid = states.transpose(1, 2).reshape(len(states), -1, *sides)  # (B, D, rows, columns)
        return F.adaptive_max_pool2d(grid, nodes).flatten(2).transpose(1, 2)  # (B, nodes^2, D)
