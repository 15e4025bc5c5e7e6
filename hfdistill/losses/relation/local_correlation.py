"""Local correlation consistency: how the parts of rows relate, within a row and between rows (Li et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from hfdistill.functional.local import local_correlation, map_patches, text_segments
from hfdistill.losses.batch_relation import BatchRelationLoss
from hfdistill.losses.layerwise import Layers
from hfdistill.losses.method import Method, Paper
from hfdistill.losses.places import Grid, pooled_grid
from hfdistill.representations import Batch, Needs, Representations
from hfdistill.schedules import Schedule


class LocalCorrelationLoss(BatchRelationLoss):
    """Match the angles between the parts of rows: within a row, and between rows (LCC, LKD).

    A text's parts are runs of its real tokens, each averaged; an image's are squares of its patches, each flattened. C
    is the cosine between two parts; L = sum over layers of within mean over pairs of parts of one row of (C_student -
    C_teacher)^2 + same_place the same over pairs of rows at one place + across over all pairs of parts. No projection;
    two image models may have grids of different size.

    Li et al. 2020, Local Correlation Consistency for Knowledge Distillation, ECCV,
    https://doi.org/10.1007/978-3-030-58610-2_2: the three relations. Their formulas and weights are reconstructed from
    the abstract. The paper's class-aware attention, which masks the teacher's map first, is left out.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher); memory grows with (B P)^2, P parts per row.

    Args:
        layers: which student layer learns from which teacher layer.
        parts: k; a text has k parts, an image k x k. The paper's k is 4 on small images and 3 on large ones, as others
            report. A text of fewer tokens leaves some of its parts empty; they do not count.
        within: weight of the pairs of parts of one row.
        same_place: weight of the pairs of rows at one place.
        across: weight of all pairs.
        gather: relate the rows of all processes.
        weight: see DistillationLoss.

    Raises:
        ValueError: no parts, or more than the grid of an image model has rows or columns; a layer map that does not
            fit the two depths.
    """

    method = Method(
        (
            Paper(
                "Li et al.",
                2020,
                "Local Correlation Consistency for Knowledge Distillation",
                "https://doi.org/10.1007/978-3-030-58610-2_2",
            ),
        ),
        ("lcc/k2",),
        ("depends on which rows share a batch: see gather", "memory grows with (B P)^2"),
        "the formula, which is reconstructed from the abstract; the weights; the class-aware attention is left out",
    )

    def __init__(
        self,
        layers: Layers = ((-1, -1),),
        parts: int = 4,
        within: float = 1.0,
        same_place: float = 1.0,
        across: float = 1.0,
        gather: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, gather=gather, weight=weight)
        if parts < 1:
            raise ValueError(
                f"LocalCorrelationLoss needs at least 1 part, got {parts}: it compares parts of rows. Use 2 to 4."
            )
        self.parts = parts
        self.fewest_rows = 2 if parts == 1 else 1
        self.within = within
        self.same_place = same_place
        self.across = across

    def cached_needs(self) -> Needs:
        """All tokens of the mapped layers, of which the parts are made."""
        return self.needs()[1]

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum of `compare` over the mapped layers."""
        values = []
        for (ours, theirs), (grid, their_grid) in zip(self.pairs, self.images, strict=True):
            state, held = self._parts(student.hidden_states[ours], batch.mask, grid)
            target, _ = self._parts(teacher.hidden_states[theirs].detach(), batch.mask, their_grid)
            values.append(self.compare(self.all_rows(state), self.all_rows(target), self.all_rows(held)))
        return torch.stack(values).sum()

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """Weighted sum of the terms of one pair of layers; student, teacher: (B, P, D) parts; mask: (B, P)."""
        terms = local_correlation(student, teacher, mask)
        return self.within * terms.within + self.same_place * terms.same_place + self.across * terms.across

    def _parts(self, hidden: Tensor, mask: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor]:
        hidden = hidden[:, grid.prefix :]
        sides = grid.of(hidden.shape[1])
        if sides is None:
            return text_segments(hidden, self.parts, mask)
        if min(sides) < self.parts:
            raise ValueError(
                f"LocalCorrelationLoss cuts {self.parts} x {self.parts} parts out of {sides[0]} x {sides[1]} patches, "
                "so that some would be empty. Set parts to a smaller number."
            )
        even = (sides[0] // self.parts * self.parts, sides[1] // self.parts * self.parts)
        states = pooled_grid(hidden, sides, even).transpose(1, 2)  # (B, D, rows * columns)
        patches = map_patches(states.reshape(*states.shape[:2], *even), self.parts)
        return patches, torch.ones_like(patches[..., 0], dtype=torch.bool)
