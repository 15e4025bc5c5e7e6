"""Prime-aware adaptive distillation: features, weighed by a variance that the student predicts (Zhang et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfdistill.anatomy import Anatomy
from hfdistill.functional.reductions import blanked
from hfdistill.functional.supervision import prime_aware
from hfdistill.losses.base import choose
from hfdistill.losses.layerwise import Layers, LayerwiseLoss, pair_widths
from hfdistill.losses.method import Method, Paper
from hfdistill.losses.pooling import POOLINGS, pooled_vector, settled_poolings
from hfdistill.representations import Batch, Representations
from hfdistill.schedules import Schedule, as_schedule

_BOUND = 8.0  # of |v|: a weight between exp(-8) and exp(8), both 3000 times away from 1


class VarianceBranch(nn.Module):
    """Predicts the log-variance of each entry of the teacher's vector from the student's; 0 at first.

    Args:
        student_width: D_student.
        teacher_width: D_teacher.
        normalization: "layer" normalises each vector that is read, "batch" what is predicted, over the batch.
    """

    def __init__(self, student_width: int, teacher_width: int, normalization: str) -> None:
        super().__init__()
        self.student_width, self.teacher_width = student_width, teacher_width
        self.linear = nn.Linear(student_width, teacher_width, bias=normalization == "layer")
        self.spread: nn.Parameter | None = None
        self.shift: nn.Parameter | None = None
        if normalization == "layer":
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
        else:
            self.spread, self.shift = (nn.Parameter(torch.zeros(teacher_width)) for _ in range(2))

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Log-variances (..., D_teacher), float32 or wider, of student vectors (..., D_student); mask: (...)."""
        hidden = hidden.to(self.linear.weight.dtype)
        valid = None if mask is None else mask.bool()
        if self.spread is None or self.shift is None:
            return blanked(self.linear(F.layer_norm(hidden, hidden.shape[-1:])), valid)
        value = blanked(self.linear(hidden), valid).flatten(0, -2)  # (rows, D_teacher)
        rows = len(value) if valid is None else valid.sum().clamp(min=1)
        centred = value - value.sum(0) / rows
        if valid is not None:
            centred = centred.masked_fill(~valid.flatten()[:, None], 0.0)
        value = centred / (centred.square().sum(0) / rows + 1e-5).sqrt()
        return (value * self.spread + self.shift).view(*hidden.shape[:-1], -1)  # (..., D_teacher)


class PrimeAwareLoss(LayerwiseLoss):
    """Match the teacher's vectors, each entry weighed by how well the student expects to match it.

    L = sum over pairs (s, t) of mean_rows mean_D [(W h_s - h_t)^2 / (1e-6 + exp(v)) + v], v the log-variance that a
    branch of the loss predicts from h_s: hard rows count less ("prime" ones more), and the last term keeps v from
    growing. v is 0 at first, where L is the mean squared difference, and is clamped to [-8, 8]; its gradient reaches
    the student. L may become negative.

    Zhang et al. 2020, Prime-Aware Adaptive Distillation,
    https://www.ecva.net/papers/eccv_2020/papers_ECCV/html/3317_ECCV_2020_paper.php. Held to torchdistill's code, where
    the branch is a linear map and batch normalisation and the mean is over D; the paper sums over D.
    normalization="batch" is that; "layer" is ours, free of the batch. Layer normalisation of v itself would give every
    row the same mean variance, and hide which rows are hard: here it comes before the linear map.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher).

    Args:
        layers: which student layer learns from which teacher layer; by default the last from the last.
        pooling: how the tokens of a row become one vector: "mean" of the real tokens, "cls", or "last" real token;
            "tokens" compares token by token.
        normalization: "layer" or "batch"; the latter depends on which rows share a batch, of each process alone.
        variance: what v is multiplied by; a Schedule that starts at 0 begins with the plain squared difference.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown pooling or normalization; a layer map that does not fit the two depths.
    """

    method = Method(
        papers=(
            Paper(
                "Zhang et al.",
                2020,
                "Prime-Aware Adaptive Distillation",
                "https://www.ecva.net/papers/eccv_2020/papers_ECCV/html/3317_ECCV_2020_paper.php",
            ),
        ),
        evidence=("pad_l2",),
        restrictions=("normalization='batch' needs several rows in a batch",),
    )

    def __init__(
        self,
        layers: Layers = ((-1, -1),),
        pooling: str = "mean",
        normalization: str = "layer",
        variance: float | Schedule = 1.0,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight=weight)
        self.pooling = choose("pooling", pooling, (*POOLINGS, "tokens"))
        self.normalization = choose("normalization", normalization, ("layer", "batch"))
        self.variance = as_schedule(variance)
        self.poolings = (pooling, pooling)
        self.branches = nn.ModuleList()

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map, build projectors and variance branches."""
        super().bind(student, teacher)
        if self.pooling != "tokens":
            self.poolings = settled_poolings(self.pooling, student, teacher)
        wanted = pair_widths(self.pairs, student, teacher)
        made = [(b.student_width, b.teacher_width) for b in self.branches if isinstance(b, VarianceBranch)]
        if made != wanted:
            self.branches = nn.ModuleList(VarianceBranch(*widths, self.normalization) for widths in wanted)

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum over the mapped layers."""
        values = []
        for position, (ours, theirs) in enumerate(self.pairs):
            states = student.hidden_states[ours], teacher.hidden_states[theirs]
            state, target, mask = self._vectors(position, *states, batch)
            log_variance = self.branches[position](state, mask) * self.variance(batch.progress)
            values.append(
                prime_aware(self.project(position, state), target, log_variance.clamp(-_BOUND, _BOUND), mask)
            )
        return torch.stack(values).sum()

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """One pair of layers where v is 0: the mean squared difference."""
        return prime_aware(student, teacher, torch.zeros_like(student), mask)

    def count(self, batch: Batch) -> Tensor:
        """Rows, or real tokens."""
        return batch.token_count() if self.pooling == "tokens" else batch.row_count()

    def _vectors(
        self, position: int, student: Tensor, teacher: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.pooling == "tokens":
            return self.aligned(position, student, teacher, batch.mask)
        ours, theirs = self.poolings
        vectors = pooled_vector(student, batch.mask, ours), pooled_vector(teacher, batch.mask, theirs)
        return *vectors, batch.real_rows()
