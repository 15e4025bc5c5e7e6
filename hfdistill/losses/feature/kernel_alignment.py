"""Kernel alignment: the geometry of many rows at once, whatever the widths (CKA)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hfdistill.functional.kernels import kernel_alignment
from hfdistill.losses.base import choose
from hfdistill.losses.batch_relation import BatchRelationLoss
from hfdistill.losses.layerwise import Layers
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import Batch, Needs, Representations
from hfdistill.schedules import Schedule


class KernelAlignmentLoss(BatchRelationLoss):
    """Align how the samples lie to each other in the student's layers with how they lie in the teacher's.

    L = sum over pairs of layers of 1 - CKA(X, Y), CKA = |X^T Y|^2 / (|X^T X| |Y^T Y|) (Frobenius norms) of the rows of
    both sides less their mean, in [0, 1]: 0 where one is a rotation and scaling of the other. Rows are the real tokens
    of the batch, or one vector per sample. Nothing is projected.

    Kornblith et al. 2019, Similarity of Neural Network Representations Revisited, https://arxiv.org/abs/1905.00414,
    section 3; as a distillation loss Zhou et al. 2024, Rethinking Centered Kernel Alignment in Knowledge Distillation,
    https://arxiv.org/abs/2401.11824 (`centre=False`, their L is -CKA). `debiased=True`: with the unbiased HSIC of Song
    et al. 2012, Feature Selection via Dependence Maximization, https://jmlr.org/papers/v13/song12a.html.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher).

    Args:
        layers: which student layer learns from which teacher layer.
        samples: "tokens", all real ones of the batch, or "rows", one vector each.
        centre: take the rows less their mean.
        debiased: for few rows: with no more rows than D plain CKA is near 1 whatever they hold. Always centred.
        pooling: with "rows", how tokens become one vector: "mean" of the real ones, "cls", or "last" real one.
        gather: align the samples of all processes instead of each process's own.
        weight: see DistillationLoss.

    Raises:
        ValueError: unknown samples or pooling; `debiased` without `centre`; a layer map that does not fit the depths.
    """

    method = Method(
        papers=(
            Paper(
                "Kornblith et al.",
                2019,
                "Similarity of Neural Network Representations Revisited",
                "https://arxiv.org/abs/1905.00414",
            ),
            Paper(
                "Zhou et al.",
                2024,
                "Rethinking Centered Kernel Alignment in Knowledge Distillation",
                "https://arxiv.org/abs/2401.11824",
            ),
            Paper(
                "Song et al.",
                2012,
                "Feature Selection via Dependence Maximization",
                "https://jmlr.org/papers/v13/song12a.html",
            ),
        ),
        evidence=("cka/centred", "cka/uncentred", "cka/debiased"),
        restrictions=(
            "at least 2 samples in a batch, 4 if debiased",
            "many more samples than the width, or debiased",
            "depends on which samples share a batch: gradient accumulation does not enlarge it",
        ),
        unverified="centred and debiased forms are held to their definitions, not to a distillation paper's code",
    )
    same_tokens: ClassVar[bool] = True  # tokens are samples

    def __init__(
        self,
        layers: Layers = "uniform",
        samples: str = "tokens",
        centre: bool = True,
        debiased: bool = False,
        pooling: str = "mean",
        gather: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, pooling, gather, weight)
        self.samples = choose("samples", samples, ("tokens", "rows"))
        if samples == "rows":
            self.fewest_rows = 4 if debiased else 2
        self.centre = centre
        self.debiased = debiased
        if debiased and not centre:
            raise ValueError(
                "debiased=True cannot go with centre=False: the unbiased estimate is of the centred alignment. Leave "
                "one of them out."
            )

    def cached_needs(self) -> Needs:
        """One vector of each row, or all tokens where these are the samples."""
        return super().cached_needs() if self.samples == "rows" else self.needs()[1]

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum of `compare` over the mapped layers."""
        if self.samples == "rows":
            return super().forward(student, teacher, batch)
        values = []
        for position, (ours, theirs) in enumerate(self.pairs):
            states = student.hidden_states[ours], teacher.hidden_states[theirs]
            state, target, mask = self.aligned(position, *states, batch.mask)
            kept = None if mask is None else self.all_rows(mask.bool().flatten())  # (B * N,)
            # flattened first: the number of tokens may differ between processes
            rows, targets = (self.all_rows(side.flatten(0, 1)) for side in (state, target.detach()))  # (B * N, D)
            values.append(self.compare(rows, targets, kept))
        return torch.stack(values).sum()

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """1 - CKA of one pair of layers; (n, D_student), (n, D_teacher), (n,)."""
        return kernel_alignment(student, teacher, mask, self.centre, self.debiased)

    def count(self, batch: Batch) -> Tensor:
        """Samples: real tokens, or rows."""
        return batch.token_count() if self.samples == "tokens" else batch.row_count()
