"""Losses over the relations between the rows of a batch: one vector per row, of this process or of all."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.losses.base import choose
from hfdistill.losses.gathering import gathered_rows
from hfdistill.losses.layerwise import Layers, LayerwiseLoss
from hfdistill.losses.pooling import POOLINGS, pooled_vector, settled_poolings, teacher_vector
from hfdistill.representations import Batch, Needs, Representations
from hfdistill.schedules import Schedule


class BatchRelationLoss(LayerwiseLoss):
    """Compares how the rows of a batch relate, by one vector per row; subclass it and write `compare`.

    The layer map, pooling, the rows that count, `gather` and the sum over layers are inherited. Such a loss depends on
    which rows share a batch: gradient accumulation does not enlarge the batch, `gather` does.

    Args:
        layers: which student layer learns from which teacher layer; by default the last from the last.
        pooling: how the tokens of a row become one vector: "mean" of the real tokens, "cls", or "last" real token; of
            an image model without a class token always the mean instead of "cls".
        gather: relate the rows of all processes instead of each process's own.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown pooling; a layer map that does not fit the two depths.
    """

    projects: ClassVar[bool] = False
    same_tokens: ClassVar[bool] = False

    def __init__(
        self,
        layers: Layers = ((-1, -1),),
        pooling: str = "mean",
        gather: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight=weight)
        self.pooling = choose("pooling", pooling, tuple(POOLINGS))
        self.poolings = (pooling, pooling)
        self.gather = gather

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map, build the projectors if the loss `projects`, and settle how rows are pooled."""
        super().bind(student, teacher)
        self.poolings = settled_poolings(self.pooling, student, teacher)

    def cached_needs(self) -> Needs:
        """One vector of each row at the mapped layers, and what else a subclass needs.

        A subclass that looks at the tokens of a mapped layer overrides this.
        """
        _, needs = self.needs()
        layers = needs.hidden_states & {layer for _, layer in self.pairs}
        pooled = frozenset((layer, self.poolings[1]) for layer in layers)
        return replace(needs, hidden_states=needs.hidden_states - layers, pooled_states=pooled)

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum of `compare` over the mapped layers."""
        rows = self.real_rows(batch)
        values = [
            self.compare(*self.vectors(position, student, teacher, batch), rows) for position in range(len(self.pairs))
        ]
        return torch.stack(values).sum()

    def vectors(
        self, position: int, student: Representations, teacher: Representations, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Both sides' vectors of the pair of layers at `position`: (B, D_student) and (B, D_teacher), no gradient.

        The student's are projected if the loss `projects`; with `gather` B counts the rows of all processes.
        """
        ours, theirs = self.pairs[position]
        vector = self.project(position, pooled_vector(student.hidden_states[ours], batch.mask, self.poolings[0]))
        theirs_mask = batch.mask if batch.teacher_mask is None else batch.teacher_mask
        target = teacher_vector(teacher, theirs, theirs_mask, self.poolings[1]).detach()
        return self.all_rows(vector), self.all_rows(target)

    def all_rows(self, rows: Tensor) -> Tensor:
        """Rows (B, ...) of this process, or with `gather` of all."""
        return gathered_rows(rows) if self.gather else rows

    def real_rows(self, batch: Batch) -> Tensor | None:
        """(B,) bool, the rows that hold a real token; None: all do."""
        real = batch.real_rows()
        return None if real is None else self.all_rows(real)

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """The loss of one pair of layers.

        Args:
            student: (B, D_student), or (B, D_teacher) if the loss `projects`.
            teacher: (B, D_teacher).
            mask: (B,) bool, True = the row counts, or None.
        """

    def count(self, batch: Batch) -> Tensor:
        """Rows."""
        return batch.row_count()
