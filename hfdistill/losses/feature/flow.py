"""Flow of the solution procedure: how the layers of one network relate to each other (Yim et al. 2017)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.functional.feature import flow_of_solution
from hfdistill.losses.layerwise import Layers, LayerwiseLoss
from hfdistill.losses.method import Method, Paper
from hfdistill.losses.places import pooled_grid
from hfdistill.representations import Batch, Representations
from hfdistill.schedules import Schedule


class FlowLoss(LayerwiseLoss):
    """Match how a row's states change from each mapped layer to the next.

    G = (1/n) sum_tokens x y^T relates the states x of one layer with the states y of the next mapped layer of the same
    network, the larger grid average-pooled to the smaller where a model's stages have different ones; L = sum over
    consecutive pairs of the map of mean_rows mean (G_s - G_t)^2, of D_teacher^2 entries. Student states are projected
    where the widths differ. G has that many entries for each row: 2.4 MB at a width of 768.

    Yim et al. 2017, A Gift from Knowledge Distillation, CVPR,
    https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html, equations 1 and 2,
    averaged over the entries instead of summed, as in later codes.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher); of images the patches only.

    Args:
        layers: which student layer learns from which teacher layer, at least two pairs; 0 is the embedding output.
        shared_projector: one projector for all pairs of layers of the same widths instead of one per pair.
        weight: see DistillationLoss.

    Raises:
        ValueError: fewer than two pairs; a layer map that does not fit the two depths.
    """

    places: ClassVar[bool] = True
    method: ClassVar[Method | None] = Method(
        papers=(
            Paper(
                "Yim et al.",
                2017,
                "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
                "https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html",
            ),
        ),
        evidence=("fsp", "fsp/masked"),
        restrictions=("at least two pairs of layers", "the same places on both sides"),
    )

    def __init__(
        self, layers: Layers = "uniform", shared_projector: bool = False, weight: float | Schedule = 1.0
    ) -> None:
        super().__init__(layers, shared_projector, weight)

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map and build the projectors."""
        super().bind(student, teacher)
        if len(self.pairs) < 2:
            raise ValueError(
                f"FlowLoss relates each mapped layer to the next, got the one pair {self.pairs[0]} of layers "
                f"'{self.layers}'. A flow has two ends; map at least two layers, as 'uniform' does."
            )

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum over the consecutive pairs of the map."""
        shown = []
        for position, (ours, theirs) in enumerate(self.pairs):
            states = student.hidden_states[ours], teacher.hidden_states[theirs]
            state, target, mask = self.aligned(position, *states, batch.mask)
            shown.append((self.project(position, state), target, mask))
        values = []
        for (state, target, mask), (next_state, next_target, _) in pairwise(shown):
            ours_first, ours_second = self._on_one_grid(state, next_state)
            theirs_first, theirs_second = self._on_one_grid(target, next_target)
            values.append(flow_of_solution(ours_first, ours_second, theirs_first, theirs_second, mask))
        return torch.stack(values).sum()

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """The flow from one layer to itself."""
        return flow_of_solution(student, student, teacher, teacher, mask)

    def count(self, batch: Batch) -> Tensor:
        """Rows."""
        return batch.row_count()

    def _on_one_grid(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The states of two layers of one model, the larger grid average-pooled to the smaller."""
        sides = self.sides(first.shape[1]), self.sides(second.shape[1])
        if sides[0] is None or sides[1] is None:
            return first, second
        smaller = (min(sides[0][0], sides[1][0]), min(sides[0][1], sides[1][1]))
        return pooled_grid(first, sides[0], smaller), pooled_grid(second, sides[1], smaller)
