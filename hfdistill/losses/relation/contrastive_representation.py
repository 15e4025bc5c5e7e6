"""Contrastive intermediate representations: LRC-BERT's COS-NCE (Fu et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hfdistill.functional.contrastive import cos_nce_in_batch
from hfdistill.losses.batch_relation import BatchRelationLoss
from hfdistill.losses.layerwise import Layers
from hfdistill.losses.method import Method, Paper
from hfdistill.schedules import Schedule


class ContrastiveRepresentationLoss(BatchRelationLoss):
    """Pull each row towards the teacher's vector of the same row, and away from those of the other rows.

    With g(x, y) = 1 - cos(x, y), z the student's vector, z+ the teacher's, and n_1..n_K the teacher's vectors of the
    other rows of the batch: L = sum over layers of mean_rows [ (2K - sum_i (g(n_i, z) - g(z+, z))) / (2K) + g(z+, z)
    ], in [0, 4] per layer. A batch of one row has no negatives; then L = g(z+, z).

    Fu et al. 2021, LRC-BERT, https://arxiv.org/abs/2012.07335, equation 3. The paper's K, its layers and the vector it
    compares are not verified; in-batch negatives and the mean of the real tokens are our choice.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher), of which one vector per row is taken.

    Args:
        layers: which student layer learns from which teacher layer.
        embeddings: False leaves the embedding output out of the map; True keeps it where the map has it.
        pooling: "mean" of the real tokens, "cls", or "last" real token.
        gather: take the rows of all processes as negatives instead of each process's own.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown pooling; a layer map that does not fit the two depths.
    """

    method = Method(
        papers=(
            Paper(
                "Fu et al.",
                2021,
                "LRC-BERT: Latent-representation Contrastive Knowledge Distillation for Natural Language "
                "Understanding",
                "https://arxiv.org/abs/2012.07335",
            ),
        ),
        evidence=(
            "cos_nce",
            "hand/cos_nce_best",
            "hand/cos_nce_worst",
            "written out row by row in tests/losses/test_contrastive_representation.py",
        ),
        restrictions=(
            "negatives are the other rows of the micro-batch: its value depends on the batch size, and accumulation "
            "does not add negatives",
            "a batch of one row has no negatives",
        ),
        unverified="the paper's number of negatives, its layers and the vector that it compares",
    )

    projects: ClassVar[bool] = True

    def __init__(
        self,
        layers: Layers = "uniform",
        embeddings: bool = False,
        pooling: str = "mean",
        gather: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, pooling, gather, weight)
        if not embeddings:
            self.layers = self.layers.without_embeddings()

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """COS-NCE of one pair of layers."""
        return cos_nce_in_batch(student, teacher, mask)
