"""Contrastive intermediate representations: LRC-BERT's COS-NCE (Fu et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from hfdistill import functional
from hfdistill.losses.base import choose
from hfdistill.losses.layerwise import Layers, LayerwiseLoss
from hfdistill.losses.pooling import POOLINGS, pooled_vector
from hfdistill.representations import Batch, Representations
from hfdistill.schedules import Schedule


class ContrastiveRepresentationLoss(LayerwiseLoss):
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
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown pooling; a layer map that does not fit the two depths.
    """

    def __init__(
        self,
        layers: Layers = "uniform",
        embeddings: bool = False,
        pooling: str = "mean",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight=weight)
        self.pooling = choose("pooling", pooling, tuple(POOLINGS))
        if not embeddings:
            self.layers = self.layers.without_embeddings()

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum over the mapped layers."""
        values = []
        for position, (ours, theirs) in enumerate(self.pairs):
            vector = self.project(position, pooled_vector(student.hidden_states[ours], batch.mask, self.pooling))
            target = pooled_vector(teacher.hidden_states[theirs], batch.mask, self.pooling)
            values.append(self.compare(vector, target, batch.real_rows()))
        return torch.stack(values).sum()

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """COS-NCE of one pair of layers; student, teacher: (B, D); mask: (B,), True = a row counts, or None."""
        negative_mask = None if mask is None else other_rows(mask)
        return functional.cos_nce(student, teacher, other_rows(teacher), negative_mask, mask)

    def count(self, batch: Batch) -> Tensor:
        """Rows."""
        return batch.row_count()


def other_rows(vectors: Tensor) -> Tensor:
    """For each row all the others: (B, ...) -> (B, B - 1, ...)."""
    size = vectors.shape[0]
    steps = torch.arange(1, size, device=vectors.device)  # (B - 1,)
    rows = torch.arange(size, device=vectors.device)[:, None]  # (B, 1)
    return vectors[(rows + steps) % size]  # (B, B - 1, ...)
