"""Attention decides which student layer learns from which teacher layer (Ji et al. 2021, AFD)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy
from hfdistill.functional.matching import attended_matching, energy, layer_attention
from hfdistill.functional.reductions import blanked, unit
from hfdistill.losses.base import DistillationLoss, choose
from hfdistill.losses.layerwise import Layers, layer_sets, parse_layers
from hfdistill.losses.method import Method, Paper
from hfdistill.losses.places import Grid, aligned_places
from hfdistill.losses.pooling import pooled_vector
from hfdistill.representations import Batch, Needs, Representations
from hfdistill.schedules import Schedule


class AttendedLayerLoss(DistillationLoss):
    """Match every student layer with every teacher layer, each pair as much as a learnt attention says.

    L = sum over teacher layers t of mean_rows sum over student layers s of a_ts mean_tokens (v_s - v_t)^2. v: mean
    square of each token, as a unit vector over the tokens. a: softmax over s of (<k_ts, q_t> + <p_t, p_s>) / sqrt(Q),
    with q_t = norm(W_t g_t), k_ts = norm(W relu(norm(W_s g_s)))_t, g the mean of a layer's real tokens, and p learnt.
    Free of both widths. The attention learns from the same loss: it may lower it by looking at what is easy.

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
        self.images = (Grid(), Grid())
        self.attention: _LayerAttention | None = None

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Find the layers that take part, and build the attention between them."""
        if self.layers is None:
            ours, theirs = (frozenset(range(1, side.depth + 1)) for side in (student, teacher))
        else:
            ours, theirs = layer_sets(self.layers.resolve(student.depth, teacher.depth))
        self.students, self.teachers = tuple(sorted(ours)), tuple(sorted(theirs))
        self.images = (Grid(student.prefix_tokens, student.grid), Grid(teacher.prefix_tokens, teacher.grid))
        sizes = (len(ours), len(theirs), student.width, teacher.width)
        if self.attention is None or self.attention.sizes != sizes:
            self.attention = _LayerAttention(*sizes, self.width, self.norm == "batch")

    def needs(self) -> tuple[Needs, Needs]:
        """The hidden states of the layers that take part."""
        return Needs(hidden_states=frozenset(self.students)), Needs(hidden_states=frozenset(self.teachers))

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The attended difference of all pairs of layers."""
        if self.attention is None:
            raise ValueError("AttendedLayerLoss must be bound to two models before it compares: call bind first.")
        ours = [student.hidden_states[layer] for layer in self.students]
        theirs = [teacher.hidden_states[layer].detach() for layer in self.teachers]
        (own, own_vectors), (other, other_vectors) = (
            self._read(states, batch.mask, grid) for states, grid in zip((ours, theirs), self.images, strict=True)
        )
        attention = self.attention(own_vectors, other_vectors, batch.real_rows())
        own, other, mask = aligned_places(own, other, batch.mask, *self.images)  # (B, N, S), (B, N, T)
        maps, targets = (unit(side.permute(2, 0, 1)) for side in (own, other))  # (S, B, N), (T, B, N)
        return attended_matching(maps[None], targets, attention, mask)

    @staticmethod
    def _read(states: list[Tensor], mask: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor]:
        """The energies of all layers' tokens, (B, N, layers), and their mean vectors, (B, layers, D)."""
        energies = torch.stack([energy(state, mask) for state in states], dim=-1)
        rest = None if mask is None else mask[:, grid.prefix :]
        vectors = [pooled_vector(state[:, grid.prefix :], rest, "mean") for state in states]
        return energies, torch.stack(vectors, dim=1)


class _LayerAttention(nn.Module):
    """From the mean vectors of S student and T teacher layers to the attention of each teacher layer."""

    def __init__(
        self, students: int, teachers: int, student_width: int, teacher_width: int, width: int, over_batch: bool
    ) -> None:
        super().__init__()
        self.sizes = (students, teachers, student_width, teacher_width)
        self.keys = nn.ModuleList(_Reading(student_width, width, over_batch) for _ in range(students))
        self.queries = nn.ModuleList(_Reading(teacher_width, width, over_batch) for _ in range(teachers))
        self.bilinear = _Reading(width, width * teachers, over_batch)
        self.student_position = nn.Parameter(nn.init.xavier_normal_(torch.empty(students, width)))
        self.teacher_position = nn.Parameter(nn.init.xavier_normal_(torch.empty(teachers, width)))

    def forward(self, students: Tensor, teachers: Tensor, real: Tensor | None) -> Tensor:
        """(B, S, D_student), (B, T, D_teacher) and the rows that count, (B,), as the attention (B, T, S)."""
        query = torch.stack([read(teachers[:, t], real) for t, read in enumerate(self.queries)], dim=1)  # (B, T, Q)
        key = torch.stack([read(students[:, s], real).relu() for s, read in enumerate(self.keys)], dim=1)  # (B, S, Q)
        keys = self.bilinear(key, real).unflatten(-1, (teachers.shape[1], -1))  # (B, S, T, Q)
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
