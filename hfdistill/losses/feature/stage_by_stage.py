"""Stage-by-stage distillation: one stretch of layers at a time, then the head alone (Gao et al. 2019)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.functional.feature import hidden_mse
from hfdistill.losses.layerwise import Layers, LayerwiseLoss
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import Batch, Representations
from hfdistill.schedules import Schedule


class StageByStageLoss(LayerwiseLoss):
    """Teach the student's layers in turn, from below, each stage with all others frozen, and last the head alone.

    In stage k of S, L = mean_tokens mean_D (W_k h_s - h_t)^2 of the k-th pair of mapped layers, and only the student's
    layers above the (k - 1)-th mapped layer up to the k-th learn (in the first stage also the embeddings). The stages
    share the run up to `finish` equally; from there on the loss is 0 and only what follows the layers learns, from
    whatever else the objective holds. W_k is the identity where the widths agree; the next stage reads h_s, not W_k
    h_s, so that no projector stays in the student.

    Gao et al. 2019, An Embarrassingly Simple Approach for Knowledge Distillation, https://arxiv.org/abs/1812.01819.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher).

    Args:
        layers: which student layer learns from which teacher layer; each pair is a stage.
        finish: share of the run after which the head learns, in (0, 1].
        train_backbone: after `finish` let all layers learn with the head (fine-tuning) instead of the head alone.
        weight: see DistillationLoss.

    Raises:
        ValueError: `finish` is no share; a layer map that does not fit the two depths.
    """

    method = Method(
        papers=(
            Paper(
                "Gao et al.",
                2019,
                "An Embarrassingly Simple Approach for Knowledge Distillation",
                "https://arxiv.org/abs/1812.01819",
            ),
        ),
        evidence=("hint/plain", "hint/masked", "hint/projected"),
        restrictions=(
            "needs DistillationTrainer, which freezes the layers",
            "the student needs a list of layers of its own (not ALBERT, whose layers are one)",
        ),
        unverified="the squared difference and equal stages follow the abstract and memory, not the paper's text",
    )
    places: ClassVar[bool] = False

    def __init__(
        self,
        layers: Layers = "uniform",
        finish: float = 0.75,
        train_backbone: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight=weight)
        if not 0.0 < finish <= 1.0:
            raise ValueError(
                f"finish must be a share of the run in (0, 1], got {finish}: the stages end there and the head "
                "learns. Take 0.75."
            )
        self.layers = self.layers.without_embeddings()
        self.finish = finish
        self.train_backbone = train_backbone
        self.depth = 0

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map and build the projectors."""
        super().bind(student, teacher)
        self.depth = student.depth

    def paired(self, student: Anatomy, teacher: Anatomy) -> tuple[tuple[int, int], ...]:
        """The pairs of the layer map, from below."""
        return tuple(sorted(super().paired(student, teacher)))

    def stage(self, progress: float) -> int | None:
        """Number of the stage at this progress, from 0; None after the last."""
        if progress >= self.finish:
            return None
        return min(int(progress / self.finish * len(self.pairs)), len(self.pairs) - 1)

    def trained_depths(self, progress: float) -> frozenset[int] | None:
        """The depths that learn now; see DistillationLoss.trained_depths."""
        stage = self.stage(progress)
        if stage is None:
            return None if self.train_backbone else frozenset({self.depth + 1})
        first = 0 if stage == 0 else self.pairs[stage - 1][0] + 1
        return frozenset(range(first, self.pairs[stage][0] + 1))

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The hint of the stage that is on; 0 after the last."""
        stage = self.stage(batch.progress)
        position = stage or 0
        ours, theirs = self.pairs[position]
        states = student.hidden_states[ours], teacher.hidden_states[theirs]
        state, target, mask = self.aligned(position, *states, batch.mask)
        value = self.compare(self.project(position, state), target, mask)
        return value if stage is not None else value * 0.0

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """Mean over real tokens of the squared difference."""
        return hidden_mse(student, teacher, mask)
