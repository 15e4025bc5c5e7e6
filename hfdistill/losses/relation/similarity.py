"""Similarity-preserving distillation: which rows of a batch excite a model alike (Tung and Mori 2019)."""

from __future__ import annotations

from torch import Tensor

from hfdistill.functional.relation import similarity_preserving
from hfdistill.losses.batch_relation import BatchRelationLoss
from hfdistill.losses.layerwise import Layers
from hfdistill.losses.method import Method, Paper
from hfdistill.schedules import Schedule


class SimilarityPreservingLoss(BatchRelationLoss):
    """Match the similarities between the rows of a batch (SP, SPKD).

    G = Q Q^T of one vector per row, each row of G scaled to length 1; L = sum over layers of |G_student -
    G_teacher|_F^2 / B^2. Rotations and a common scale of either side change nothing, shifts do.

    Tung and Mori 2019, Similarity-Preserving Knowledge Distillation, https://arxiv.org/abs/1907.09682, equations 1 to
    4. The paper flattens whole activation maps; here tokens are pooled, since padding would decide a flattened text.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher), of which one vector per row is taken.

    Args:
        layers: which student layer learns from which teacher layer; published results use the last.
        pooling: "mean" of the real tokens, "cls", or "last" real token.
        centre: take the mean over the batch away first. Vectors of language models share a large common part, next to
            which all rows look alike. Not in the paper.
        gather: relate the rows of all processes.
        weight: see DistillationLoss; 3000 in the code that most comparisons use.

    Raises:
        ValueError: an unknown pooling; a layer map that does not fit the two depths.
    """

    method = Method(
        (
            Paper(
                "Tung and Mori",
                2019,
                "Similarity-Preserving Knowledge Distillation",
                "https://arxiv.org/abs/1907.09682",
            ),
        ),
        ("sp",),
        ("at least 2 rows in a batch", "depends on which rows share a batch: see gather"),
    )
    fewest_rows: int = 2

    def __init__(
        self,
        layers: Layers = ((-1, -1),),
        pooling: str = "mean",
        centre: bool = False,
        gather: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, pooling, gather, weight)
        self.centre = centre

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """Squared difference of the Gram matrices of one pair of layers."""
        return similarity_preserving(student, teacher, mask, self.centre)
