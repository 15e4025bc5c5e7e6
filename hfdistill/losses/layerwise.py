"""Losses that compare mapped layers, pair by pair: hidden states (LayerwiseLoss) or attention (AttentionLoss)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy
from hfdistill.layer_map import LayerMap
from hfdistill.losses.base import DistillationLoss
from hfdistill.losses.places import Grid, aligned_places
from hfdistill.projector import Projector
from hfdistill.representations import Attention, Batch, Needs, Representations
from hfdistill.schedules import Schedule

Layers = str | LayerMap | Sequence[Sequence[int]]
"""A layer map, its name ("uniform", "skip", "every(2)"), or explicit (student, teacher) pairs."""


class LayerwiseLoss(DistillationLoss):
    """Compares hidden states layer by layer; subclass it and write `compare`.

    The layer map, projection where widths differ, masking and the sum over layers are inherited. Two class variables
    say what kind of comparison it is: `projects = False` for one that is free of the widths and needs no projector,
    `places = True` for one that reads tokens as places of a map: then class and distillation tokens of image models
    are left out, and where two image models have grids of different size, the larger is average-pooled.

    Args:
        layers: which student layer learns from which teacher layer.
        shared_projector: one projector for all layers (TinyBERT) instead of one per pair.
        weight: see DistillationLoss.
    """

    projects: ClassVar[bool] = True
    places: ClassVar[bool] = False

    def __init__(
        self, layers: Layers = "uniform", shared_projector: bool = False, weight: float | Schedule = 1.0
    ) -> None:
        super().__init__(weight)
        self.layers = parse_layers(layers)
        self.shared_projector = shared_projector
        self.pairs: tuple[tuple[int, int], ...] = ()
        self.projectors = nn.ModuleList()
        self.images = (Grid(), Grid())

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map and build the projectors."""
        self.pairs = self.paired(student, teacher)
        self.images = (Grid(student.prefix_tokens, student.grid), Grid(teacher.prefix_tokens, teacher.grid))
        if not self.projects:
            return
        widths = (student.width, teacher.width)
        wanted = 1 if self.shared_projector else len(self.pairs)
        made = [(projector.student_width, projector.teacher_width) for projector in self._made()]
        if made != [widths] * wanted:
            self.projectors = nn.ModuleList(Projector(*widths) for _ in range(wanted))

    def paired(self, student: Anatomy, teacher: Anatomy) -> tuple[tuple[int, int], ...]:
        """The pairs of layers to compare; those of the layer map unless a loss chooses others."""
        return self.layers.resolve(student.depth, teacher.depth)

    def needs(self) -> tuple[Needs, Needs]:
        """The hidden states of the mapped layers."""
        student, teacher = layer_sets(self.pairs)
        return Needs(hidden_states=student), Needs(hidden_states=teacher)

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum of `compare` over the mapped layers."""
        values = []
        for position, (ours, theirs) in enumerate(self.pairs):
            state, target, mask = self.aligned(student.hidden_states[ours], teacher.hidden_states[theirs], batch.mask)
            values.append(self.compare(self.project(position, state), target, mask))
        return torch.stack(values).sum()

    def aligned(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Two states token by token: as they are, or, if the loss reads `places`, grids of one size.

        Args:
            student: (B, N_student, D_student).
            teacher: (B, N_teacher, D_teacher).
            mask: (B, N), 1 = real token, or None.

        Returns:
            (B, N, D_student), (B, N, D_teacher) and the mask (B, N) of their tokens.

        Raises:
            ValueError: the two sides have different numbers of tokens and are not both images.
        """
        if self.places:
            return aligned_places(student, teacher, mask, *self.images)
        if student.shape[1] != teacher.shape[1]:
            raise ValueError(
                f"{type(self).__name__} compares token by token, got {student.shape[1]} tokens (student) and "
                f"{teacher.shape[1]} (teacher). Give both models the same tokens, or compare one vector per row."
            )
        return student, teacher, mask

    def project(self, position: int, hidden: Tensor) -> Tensor:
        """A student state (..., D_student) of the pair at `position` in the teacher's width, (..., D_teacher)."""
        if not self.projects:
            return hidden
        projected: Tensor = self.projectors[0 if self.shared_projector else position](hidden)
        return projected

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """The loss of one pair of layers.

        Args:
            student: (B, N, D) already in the teacher's width.
            teacher: (B, N, D).
            mask: (B, N), 1 = real token, or None.
        """

    def count(self, batch: Batch) -> Tensor:
        """Real tokens."""
        return batch.token_count()

    def _made(self) -> list[Projector]:
        return [module for module in self.projectors if isinstance(module, Projector)]


class AttentionLoss(DistillationLoss):
    """Compares the attention of layers; subclass it and write `compare` and `needs_of`.

    Args:
        layers: which student layer learns from which teacher layer; the embedding output, which has no attention, is
            left out of the map.
        weight: see DistillationLoss.
    """

    def __init__(self, layers: Layers = "uniform", weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        self.layers = parse_layers(layers).without_embeddings()
        self.pairs: tuple[tuple[int, int], ...] = ()

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map."""
        self.pairs = self.layers.resolve(student.depth, teacher.depth)

    def needs(self) -> tuple[Needs, Needs]:
        """The attention of the mapped layers."""
        student, teacher = layer_sets(self.pairs)
        return self.needs_of(student), self.needs_of(teacher)

    @abstractmethod
    def needs_of(self, layers: frozenset[int]) -> Needs:
        """The kind of attention knowledge that `compare` reads, for these layers."""

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum of `compare` over the mapped layers."""
        values = [
            self.compare(student.attentions[ours], teacher.attentions[theirs], batch.mask)
            for ours, theirs in self.pairs
        ]
        return torch.stack(values).sum()

    @abstractmethod
    def compare(self, student: Attention, teacher: Attention, mask: Tensor | None) -> Tensor:
        """The loss of one pair of layers; mask: (B, N), 1 = real token, or None."""


def parse_layers(layers: Layers) -> LayerMap:
    """A layer map from what a user may write."""
    if isinstance(layers, str | LayerMap):
        return LayerMap.parse(layers)
    return LayerMap.explicit(layers)


def layer_sets(pairs: Sequence[tuple[int, int]]) -> tuple[frozenset[int], frozenset[int]]:
    """The student's and the teacher's layers of a resolved map."""
    return frozenset(ours for ours, _ in pairs), frozenset(theirs for _, theirs in pairs)
