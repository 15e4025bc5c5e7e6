"""Knowledge review: deep levels of the student help shallow ones to learn (Chen P. et al. 2021, ReviewKD)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy
from hfdistill.functional.reductions import blanked
from hfdistill.functional.review import gated_fusion, hierarchical_context
from hfdistill.losses.base import choose
from hfdistill.losses.layerwise import Layers, LayerwiseLoss, pair_widths
from hfdistill.losses.method import Method, Paper
from hfdistill.losses.places import enlarged_grid
from hfdistill.losses.pooling import POOLINGS, pooled_vector, settled_poolings
from hfdistill.representations import Batch, Representations
from hfdistill.schedules import Schedule

_WIDEST = 512  # width in which levels are fused, at most


class ReviewLoss(LayerwiseLoss):
    """Match each teacher layer with a fusion of the student's layer of the same level and all deeper ones.

    From the deepest level to the shallowest: x_j = norm(W_1 h_j), r_j = a x_j + b r_(j+1) with two gates (a, b) =
    sigmoid(V [x_j; r_(j+1)]) for each place (the deepest level: r = x), and L = sum over levels of HCL(W_3 r_j, h_t).
    HCL is the mean squared difference over the tokens, and of their averages in 4, 2 and 1 bins with the weights 1/2,
    1/4 and 1/8, divided by the sum of the weights. Text is pooled over the real tokens of a row, images on both axes.

    Chen, Liu, Zhao and Jia 2021, Distilling Knowledge via Knowledge Review, https://arxiv.org/abs/2104.09044, section
    3. For transformers, ours: LayerNorm in place of the first batch normalisation, so that neither padding
    nor the micro-batch changes the loss; W_3 is linear with a bias, not a 3 x 3 convolution with a batch
    normalisation.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher); of images the patches only. Levels are fused in the
    width min(512, largest D_student). What a level passes on is repeated over the larger grid of the next one, where
    the student's stages have different grids.

    Args:
        layers: the levels, which student layer learns from which teacher layer; any order.
        pooled: one more level, deeper than all, of one vector per row of the last pair of layers: "cls", "mean" of the
            real tokens or "last" real token; "none" leaves it out. The paper's is the vector before the classifier.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown `pooled`; a layer map that does not fit the two depths.
    """

    projects: ClassVar[bool] = False  # W_3 brings each level to the teacher's width
    places: ClassVar[bool] = True
    method: ClassVar[Method | None] = Method(
        papers=(
            Paper(
                "Chen et al.", 2021, "Distilling Knowledge via Knowledge Review", "https://arxiv.org/abs/2104.09044"
            ),
        ),
        evidence=("hcl/1d", "hcl/2d", "abf_fuse"),
        restrictions=("the same places on both sides",),
        unverified="LayerNorm and linear maps in place of batch normalisations and 3 x 3 convolutions are ours",
    )

    def __init__(
        self,
        layers: Layers = "uniform(embeddings=False)",
        pooled: str = "none",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight=weight)
        self.pooled = choose("pooled", pooled, ("none", *POOLINGS))
        self.poolings = (pooled, pooled)
        self.levels = nn.ModuleList()

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map and build the fusion of each level."""
        super().bind(student, teacher)
        widths = pair_widths(self.pairs, student, teacher)
        if self.pooled != "none":
            self.poolings = settled_poolings(self.pooled, student, teacher)
            widths = [*widths, widths[-1]]
        width = min(_WIDEST, max(own for own, _ in widths))
        wanted = [(own, width, other, level == len(widths) - 1) for level, (own, other) in enumerate(widths)]
        if [level.sizes for level in self.levels if isinstance(level, _Level)] != wanted:
            self.levels = nn.ModuleList(_Level(*sizes) for sizes in wanted)

    def paired(self, student: Anatomy, teacher: Anatomy) -> tuple[tuple[int, int], ...]:
        """The levels, the shallowest first."""
        return tuple(sorted(super().paired(student, teacher)))

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum over the levels, the deepest first."""
        values: list[Tensor] = []
        residual: Tensor | None = None
        if self.pooled != "none":
            ours, theirs = self.pairs[-1]
            vector = pooled_vector(student.hidden_states[ours], batch.mask, self.poolings[0])[:, None]  # (B, 1, D)
            target = pooled_vector(teacher.hidden_states[theirs], batch.mask, self.poolings[1])[:, None]
            real = batch.real_rows()
            real = None if real is None else real[:, None]  # (B, 1)
            fused, residual = self.levels[-1](vector, None, real)
            values.append(hierarchical_context(fused, target, real))
        for position in reversed(range(len(self.pairs))):
            ours, theirs = self.pairs[position]
            states = student.hidden_states[ours]
            residual = self._resized(residual, position, states.shape[1])
            fused, residual = self.levels[position](states, residual, batch.mask)
            values.append(self.compare(*self.aligned(position, fused, teacher.hidden_states[theirs], batch.mask)))
        return torch.stack(values).sum()

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """The hierarchical context loss of one level, the student's already fused."""
        sides = self.sides(student.shape[1])
        return hierarchical_context(student, teacher, mask if sides is None else None, sides)

    def count(self, batch: Batch) -> Tensor:
        """Rows."""
        return batch.row_count()

    def _resized(self, residual: Tensor | None, position: int, tokens: int) -> Tensor | None:
        """What the deeper level passed on, in as many tokens as the level at `position` has; one stands for all."""
        if residual is None or residual.shape[1] in (1, tokens):
            return residual
        (deeper, _), (grid, _) = self.images[position + 1], self.images[position]
        sides, larger = deeper.of(residual.shape[1]), grid.of(tokens)
        return residual if sides is None or larger is None else enlarged_grid(residual, sides, larger)


class _Level(nn.Module):
    """One level of the student fused with what the deeper ones pass on, in a common width and in the teacher's."""

    def __init__(self, student_width: int, width: int, teacher_width: int, deepest: bool) -> None:
        super().__init__()
        self.sizes = (student_width, width, teacher_width, deepest)
        self.inner = nn.Linear(student_width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.gates = None if deepest else nn.Linear(2 * width, 2)
        self.outer = nn.Linear(width, teacher_width)
        for linear in (self.inner, self.outer):
            nn.init.kaiming_uniform_(linear.weight, a=1)
        nn.init.zeros_(self.outer.bias)

    def forward(self, states: Tensor, residual: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The level in the teacher's width (B, N, D_teacher), and what it passes on, (B, N, width)."""
        states = blanked(states, None if mask is None else mask.bool())
        passed: Tensor = self.norm(self.inner(states.to(self.inner.weight.dtype)))
        if self.gates is not None and residual is not None:
            passed = gated_fusion(passed, residual.expand_as(passed), self.gates.weight, self.gates.bias)
        return self.outer(passed.to(self.outer.weight.dtype)), passed
