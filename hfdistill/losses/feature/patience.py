"""Patient knowledge distillation: one vector per intermediate layer (Sun et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from hfdistill import functional
from hfdistill.anatomy import Anatomy
from hfdistill.losses.base import choose
from hfdistill.losses.layerwise import Layers, LayerwiseLoss
from hfdistill.losses.method import Method, Paper
from hfdistill.losses.pooling import POOLINGS, pooled_vector, settled_poolings, teacher_vector
from hfdistill.representations import Batch, Needs, Representations
from hfdistill.schedules import Schedule


class PatienceLoss(LayerwiseLoss):
    """Match the direction of the [CLS] state at the student's intermediate layers.

    L = mean over rows, layers and D of (h_s / |h_s| - h_t / |h_t|)^2, the reduction of the authors' code, for which
    their weights (10 to 1000) are meant; `reduction="paper"` sums over layers and D, as equation 7 is written, D times
    the number of layers as large.

    Sun et al. 2019, Patient Knowledge Distillation for BERT Model Compression, https://arxiv.org/abs/1908.09355,
    equation 7.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher), of which one vector per row is taken.

    Args:
        layers: "skip" (PKD-Skip) or `LayerMap.last(final=False)` (PKD-Last), or any other map.
        normalize: compare directions; False compares the vectors themselves.
        pooling: "cls", "mean" of the real tokens, or "last" real token (causal models); of an image model without a
            class token (Swin, convolutional models) the mean over its places instead of "cls".
        reduction: "mean" or "paper".
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown pooling or reduction; a layer map that does not fit the two depths.
    """

    method = Method(
        papers=(
            Paper(
                "Sun et al.",
                2019,
                "Patient Knowledge Distillation for BERT Model Compression",
                "https://arxiv.org/abs/1908.09355",
            ),
        ),
        evidence=(
            "hand/pkd_opposite",
            "pkd",
            "pkd/unnormalised",
            "pkd/paper",
            "map/pkd_skip_6_12",
            "map/pkd_last_6_12",
        ),
        restrictions=(
            "the same tokens on both sides, or two image models",
            "a student deeper than its teacher needs explicit pairs of layers, unless the teacher has stages",
            "one vector per row: pooling='cls' is for models with a first token that stands for the row, 'last' for "
            "causal ones",
        ),
    )

    def __init__(
        self,
        layers: Layers = "skip",
        normalize: bool = True,
        pooling: str = "cls",
        reduction: str = "mean",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight=weight)
        self.normalize = normalize
        self.pooling = choose("pooling", pooling, tuple(POOLINGS))
        self.poolings = (pooling, pooling)
        self.reduction = choose("reduction", reduction, ("mean", "paper"))

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map, build the projectors and settle how rows are pooled."""
        super().bind(student, teacher)
        self.poolings = settled_poolings(self.pooling, student, teacher)

    def cached_needs(self) -> Needs:
        """One vector of each row at the mapped layers."""
        return Needs(pooled_states=frozenset((layer, self.poolings[1]) for _, layer in self.pairs))

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The patience loss over all mapped layers at once."""
        real, values = batch.real_rows(), []
        for position, (ours, theirs) in enumerate(self.pairs):
            vector = pooled_vector(student.hidden_states[ours], batch.mask, self.poolings[0])
            target = teacher_vector(teacher, theirs, batch.mask, self.poolings[1])
            sides = self.project(position, vector), target
            if real is not None:  # a row without a real token has no vector: 0 on both sides
                sides = sides[0].masked_fill(~real[:, None], 0.0), target.masked_fill(~real[:, None], 0.0)
            values.append(self.compare(*sides, None))
        value = torch.stack(values).mean() if self.reduction == "mean" else torch.stack(values).sum()
        # nor is it in the denominator
        return value if real is None else value * batch.size / batch.row_count().to(value).clamp(min=1.0)

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """One pair of layers alone; (B, D) on both sides."""
        return functional.patience(student.unsqueeze(1), teacher.unsqueeze(1), self.normalize, self.reduction)

    def count(self, batch: Batch) -> Tensor:
        """Rows."""
        return batch.row_count()
