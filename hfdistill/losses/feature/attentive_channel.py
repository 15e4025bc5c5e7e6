"""A learnt attention says which channels to match (Wang et al. 2020, AFDS, its distillation part)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy
from hfdistill.functional.matching import attentive_matching
from hfdistill.losses.layerwise import Layers, LayerwiseLoss
from hfdistill.losses.method import Method, Paper
from hfdistill.losses.pooling import pooled_vector
from hfdistill.representations import Batch, Representations
from hfdistill.schedules import Schedule


class AttentiveChannelLoss(LayerwiseLoss):
    """Match the teacher's channels over the tokens, whatever their scale, the more important ones more.

    L = sum over pairs of mean_rows sum_D r_d mean_tokens (s_id / |s_d| - t_id / |t_d|)^2, the norms over the real
    tokens of a channel, with r = f / sum f, f = sigmoid(W_2 relu(W_1 g)), g the mean of the teacher's real tokens.
    That r sums to 1 keeps it from falling to 0, as it is learnt from the loss it weighs.

    Wang et al. 2020, Pay Attention to Features, Transfer Learn Faster CNNs,
    https://openreview.net/forum?id=ryxyCeHtPB. Not verified against the paper: r as here is that of the
    Knowledge-Distillation-Zoo, which found the paper's softmax unstable. The paper's other part, the selection of
    channels to prune, is left out.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher); of images the patches only.

    Args:
        layers: which student layer learns from which teacher layer.
        ratio: inner width of the attention, a share of the teacher's width, above 0.
        weight: see DistillationLoss.

    Raises:
        ValueError: a ratio that is not above 0; a layer map that does not fit the two depths.
    """

    places: ClassVar[bool] = True
    method: ClassVar[Method | None] = Method(
        papers=(
            Paper(
                "Wang et al.",
                2020,
                "Pay Attention to Features, Transfer Learn Faster CNNs",
                "https://openreview.net/forum?id=ryxyCeHtPB",
            ),
        ),
        evidence=("afds",),
        restrictions=("the same places on both sides", "no selection of channels to prune"),
        unverified="the attention is a re-implementation's, not the paper's",
    )

    def __init__(
        self,
        layers: Layers = "uniform(embeddings=False)",
        ratio: float = 1.0,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight=weight)
        if not ratio > 0:
            raise ValueError(f"ratio must be above 0, got {ratio}: the attention needs an inner width. Use 1 or 0.25.")
        self.ratio = ratio
        self.attentions = nn.ModuleList()

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map and build the projector and the attention of each pair."""
        super().bind(student, teacher)
        made = [module.width for module in self.attentions if isinstance(module, _ChannelAttention)]
        widths = [teacher.width_of(layer) for _, layer in self.pairs]
        if made != widths:
            self.attentions = nn.ModuleList(
                _ChannelAttention(width, max(int(width * self.ratio), 1)) for width in widths
            )

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum over the mapped layers."""
        values = []
        for position, (ours, theirs) in enumerate(self.pairs):
            states = student.hidden_states[ours], teacher.hidden_states[theirs].detach()
            state, target, mask = self.aligned(position, *states, batch.mask)
            values.append(self.compare(self.project(position, state), target, mask, position))
        return torch.stack(values).sum()

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None, position: int = 0) -> Tensor:
        """The loss of the pair of layers at `position`."""
        attention = self.attentions[position](pooled_vector(teacher, mask, "mean"))
        return attentive_matching(student, teacher, attention, mask)

    def count(self, batch: Batch) -> Tensor:
        """Rows."""
        return batch.row_count()


class _ChannelAttention(nn.Module):
    """From the mean vector of a layer to a weight for each of its channels, 1 in sum."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.width = width
        self.inner = nn.Linear(width, inner)
        self.outer = nn.Linear(inner, width)
        for linear in (self.inner, self.outer):
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D) as weights (B, D)."""
        scores: Tensor = self.outer(self.inner(vectors.to(self.inner.weight.dtype)).relu())
        shares = (scores if scores.dtype == torch.float64 else scores.float()).sigmoid()
        return shares / shares.sum(-1, keepdim=True)
