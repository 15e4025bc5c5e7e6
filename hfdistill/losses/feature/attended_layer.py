"""Attention decides which student layer learns from which teacher layer (Ji et al. 2021, AFD)."""

from __future__ import annotations

from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy
from hfdistill.functional.matching import attended_matching, energy, layer_attention
from hfdistill.functional.reductions import blanked, unit
from hfdistill.losses.base import DistillationLoss, choose
from hfdistill.losses.layerwise import Layers, layer_sets, mapped_layers, parse_layers
from hfdistill.losses.method import Method, Paper
from hfdistill.losses.places import Grid, aligned_places, grid_of
from hfdistill.losses.pooling import pooled_vector
from hfdistill.representations import Batch, Needs, Representations
from hfdistill.schedules import Schedule


class AttendedLayerLoss(DistillationLoss):
    """Match every student layer with every teacher layer, each pair as much as a learnt attention says.

    L = sum over teacher layers t of mean_rows sum over student layers s of a_ts mean_tokens (v_s - v_t)^2. v: mean
    square of each token, as a unit vector over the tokens, on the smaller grid of the two layers of image models. a:
    softmax over s of (<k_ts, q_t> + <p_t, p_s>) / sqrt(Q), with q_t = norm(W_t g_t), k_ts = norm(W relu(norm(W_s
    g_s)))_t, g the mean of a layer's real tokens, and p learnt. Free of both widths. The attention learns from the
    same loss: it may lower it by looking at what is easy.

    Ji, Heo and Park 2021, Show, Attend and Distill, https://arxiv.org/abs/2102.02973, section 3.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher); of images the patches only.

    Args:
        layers: a layer map whose student layers and teacher layers take part, all with all; None: every layer of both
            models, as in the paper.
        width: Q, of queries and keys, at least 1.
        norm: "layer" normalises each row by itself; "batch", the paper's, each entry over the rows at hand, in
            evaluation too: then the loss depends on which rows share a micro-batch. Use it with 16 rows or more.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown norm, a width below 1; a layer map that does not fit the two depths.
    """

    method: ClassVar[Method | None] = Method(
        papers=(
            Paper(
                "Ji et al.",
                2021,
                "Show, Attend and Distill: Knowledge Distillation via Attention-based Feature Matching",
                "https://arxiv.org/abs/2102.02973",
            ),
        ),
        evidence=("afd/attention", "afd/match"),
        restrictions=("the same places on both sides",),
        unverified="LayerNorm by default in place of batch normalisation is ours",
    )

    def __init__(
        self,
        layers: Layers | None = None,
        width: int = 128,
        norm: str = "layer",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(weight)
        if width < 1:
            raise ValueError(
                f"width must be at least 1, got {width}: queries and keys need entries. The paper has 128."
            )
        self.layers = None if layers is None else parse_layers(layers)
        self.width = width
        self.norm = choose("norm", norm, ("layer", "batch"))
        self.students: tuple[int, ...] = ()
        self.teachers: tuple[int, ...] = ()
        self.images: tuple[list[Grid], list[Grid]] = ([], [])
        self.attention: _LayerAttention | None = None

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Find the layers that take part, and build the attention between them."""
        if self.layers is None:
            ours, theirs = (frozenset(range(1, side.depth + 1)) for side in (student, teacher))
        else:
            ours, theirs = layer_sets(mapped_layers(self.layers, student, teacher))
        self.students, self.teachers = tuple(sorted(ours)), tuple(sorted(theirs))
        sides = (student, self.students), (teacher, self.teachers)
        own, other = ([grid_of(anatomy, layer) for layer in layers] for anatomy, layers in sides)
        self.images = own, other
        widths = [tuple(anatomy.width_of(layer) for layer in layers) for anatomy, layers in sides]
        if self.attention is None or self.attention.widths != widths:
            self.attention = _LayerAttention(widths, self.width, self.norm == "batch")

    def needs(self) -> tuple[Needs, Needs]:
        """The hidden states of the layers that take part."""
        return Needs(hidden_states=frozenset(self.students)), Needs(hidden_states=frozenset(self.teachers))

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The attended difference of all pairs of layers."""
        if self.attention is None:
            raise ValueError("AttendedLayerLoss must be bound to two models before it compares: call bind first.")
        ours = [student.hidden_states[layer] for layer in self.students]
        theirs = [teacher.hidden_states[layer].detach() for layer in self.teachers]
        attention = self.attention(
            *(self._vectors(*side, batch.mask) for side in zip((ours, theirs), self.images, strict=True)),
            batch.real_rows(),
        )
        values = []
        for own in _of_one_grid(self.images[0]):
            for other in _of_one_grid(self.images[1]):
                first, second = (  # (B, N, S), (B, N, T)
                    torch.stack([energy(state, batch.mask) for state in states], dim=-1)
                    for states in (ours[own], theirs[other])
                )
                grids = self.images[0][own.start], self.images[1][other.start]
                first, second, mask = aligned_places(first, second, batch.mask, *grids)
                maps, targets = (unit(side.permute(2, 0, 1)) for side in (first, second))  # (S, B, N), (T, B, N)
                values.append(attended_matching(maps[None], targets, attention[:, other, own], mask))
        return torch.stack(values).sum()

    @staticmethod
    def _vectors(states: list[Tensor], grids: list[Grid], mask: Tensor | None) -> list[Tensor]:
        """The mean vector of each layer's places, (B, D)."""
        return [
            pooled_vector(state[:, grid.prefix :], None if mask is None else mask[:, grid.prefix :], "mean")
            for state, grid in zip(states, grids, strict=True)
        ]


def _of_one_grid(grids: list[Grid]) -> list[slice]:
    """Layers with places in common, as runs of their numbers; all of a model without stages are one run."""
    runs = []
    for _, run in groupby(range(len(grids)), key=grids.__getitem__):
        numbers = list(run)
        runs.append(slice(numbers[0], numbers[-1] + 1))
    return runs


class _LayerAttention(nn.Module):
    """From the mean vectors of S student and T teacher layers to the attention of each teacher layer."""

    def __init__(self, widths: list[tuple[int, ...]], width: int, over_batch: bool) -> None:
        super().__init__()
        self.widths = widths  # of the student's layers, and of the teacher's
        students, teachers = widths
        self.keys = nn.ModuleList(_Reading(size, width, over_batch) for size in students)
        self.queries = nn.ModuleList(_Reading(size, width, over_batch) for size in teachers)
        self.bilinear = _Reading(width, width * len(teachers), over_batch)
        self.student_position = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(students), width)))
        self.teacher_position = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(teachers), width)))

    def forward(self, students: list[Tensor], teachers: list[Tensor], real: Tensor | None) -> Tensor:
        """S (B, D_student), T (B, D_teacher) and the rows that count, (B,), as the attention (B, T, S)."""
        both = (self.queries, teachers), (self.keys, students)
        query, key = (
            torch.stack([read(vectors, real) for read, vectors in zip(*side, strict=True)], dim=1) for side in both
        )  # (B, T, Q), (B, S, Q)
        keys = self.bilinear(key.relu(), real).unflatten(-1, (len(teachers), -1))  # (B, S, T, Q)
        return layer_attention(query, keys, self.teacher_position, self.student_position)


class _Reading(nn.Module):
    """A linear map, normalised over its entries or over the rows, with a scale and a shift for each entry."""

    def __init__(self, width: int, out_width: int, over_batch: bool) -> None:
        super().__init__()
        self.over_batch = over_batch
        self.linear = nn.Linear(width, out_width, bias=False)  # the normalisation shifts
        self.norm = nn.LayerNorm(out_width)

    def forward(self, vectors: Tensor, real: Tensor | None) -> Tensor:
        """Read (B, ..., width) as (B, ..., out_width); statistics over rows are of the real ones."""
        read: Tensor = self.linear(vectors.to(self.linear.weight.dtype))
        if not self.over_batch:
            normed: Tensor = self.norm(read)
            return normed
        return _standardized(read, real, self.norm.eps) * self.norm.weight + self.norm.bias


def _standardized(values: Tensor, real: Tensor | None, epsilon: float) -> Tensor:
    """Each entry of (B, ..., Q) with mean 0 and variance 1 over all axes but the last, of the real rows."""
    values, axes = blanked(values), tuple(range(values.dim() - 1))
    rows = torch.ones_like(values[..., :1])
    rows = rows if real is None else rows * real.view(-1, *[1] * len(axes))  # (B, ..., 1)
    share = rows / rows.sum().clamp(min=1)
    centred = values - (values * share).sum(axes)
    return centred * ((centred.square() * share).sum(axes) + epsilon).rsqrt()
