"""Losses that compare mapped layers, pair by pair: hidden states (LayerwiseLoss) or attention (AttentionLoss)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy
from hfdistill.layer_map import LayerMap
from hfdistill.losses.base import DistillationLoss
from hfdistill.losses.places import Grid, aligned_places, aligned_tokens, common_sides, grid_of
from hfdistill.projector import Projector
from hfdistill.representations import Attention, Batch, Needs, Representations
from hfdistill.schedules import Schedule
from hfdistill.vision_stages import Window

_EITHER_WAY = ("uniform", "last", "first", "skip")
"""Rules that can pair a few layers of the student with all of the teacher's as well as the other way round."""

Layers = str | LayerMap | Sequence[Sequence[int]]
"""A layer map, its name ("uniform", "skip", "every(2)"), or explicit (student, teacher) pairs."""


class LayerwiseLoss(DistillationLoss):
    """Compares hidden states layer by layer; subclass it and write `compare`.

    The layer map, projection where widths differ, masking and the sum over layers are inherited. Two class variables
    say what kind of comparison it is: `projects = False` for one that is free of the widths and needs no projector,
    `places = True` for one that reads tokens as places of a map: then class and distillation tokens of image models
    are left out. Where two image models have grids of different size, the larger is average-pooled to the smaller, and
    of the special tokens those that only one of them has are left out.

    Args:
        layers: which student layer learns from which teacher layer.
        shared_projector: one projector for all pairs of layers of the same widths (TinyBERT: for all layers) instead
            of one per pair.
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
        self.projected_by: tuple[int, ...] = ()  # number of the projector of each pair; none where none is needed
        self.images: tuple[tuple[Grid, Grid], ...] = ()

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map and build the projectors."""
        self.pairs = self.paired(student, teacher)
        self.images = tuple((grid_of(student, ours), grid_of(teacher, theirs)) for ours, theirs in self.pairs)
        widths = self.projected_widths(student, teacher)
        wanted = list(dict.fromkeys(widths)) if self.shared_projector else widths
        self.projected_by = tuple(map(wanted.index, widths)) if self.shared_projector else tuple(range(len(widths)))
        made = [(projector.student_width, projector.teacher_width) for projector in self._made()]
        if made != wanted:
            self.projectors = nn.ModuleList(Projector(*sizes) for sizes in wanted)

    def paired(self, student: Anatomy, teacher: Anatomy) -> tuple[tuple[int, int], ...]:
        """The pairs of layers to compare; those of the layer map unless a loss chooses others."""
        return mapped_layers(self.layers, student, teacher)

    def projected_widths(self, student: Anatomy, teacher: Anatomy) -> list[tuple[int, int]]:
        """Both widths of each pair of layers that is projected: of all, or of none."""
        return pair_widths(self.pairs, student, teacher) if self.projects else []

    def needs(self) -> tuple[Needs, Needs]:
        """The hidden states of the mapped layers."""
        student, teacher = layer_sets(self.pairs)
        return Needs(hidden_states=student), Needs(hidden_states=teacher)

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum of `compare` over the mapped layers."""
        values = []
        for position, (ours, theirs) in enumerate(self.pairs):
            states = student.hidden_states[ours], teacher.hidden_states[theirs]
            state, target, mask = self.aligned(position, *states, batch.mask)
            values.append(self.compare(self.project(position, state), target, mask))
        return torch.stack(values).sum()

    def aligned(
        self, position: int, student: Tensor, teacher: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Two states token by token: as they are, or, if the loss reads `places` or images differ, grids of one size.

        Args:
            position: of the pair of layers in `self.pairs`.
            student: (B, N_student, D_student).
            teacher: (B, N_teacher, D_teacher).
            mask: (B, N), 1 = real token, or None.

        Returns:
            (B, N, D_student), (B, N, D_teacher) and the mask (B, N) of their tokens.

        Raises:
            ValueError: the two sides have different numbers of tokens and are not both images.
        """
        align = aligned_places if self.places else aligned_tokens
        return align(student, teacher, mask, *self.images[position])

    def sides(self, places: int) -> tuple[int, int] | None:
        """Rows and columns of this many aligned places; None for text."""
        return common_sides(places, [grid for pair in self.images for grid in pair])

    def project(self, position: int, hidden: Tensor) -> Tensor:
        """A student state (..., D_student) of the pair at `position` in the teacher's width, (..., D_teacher)."""
        if not self.projected_by:
            return hidden
        projected: Tensor = self.projectors[self.projected_by[position]](hidden)
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
        self.prefixes = (0, 0)

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map; refuse models without attention, or with attention between other places."""
        for anatomy in (student, teacher):
            if anatomy.attention == "none":
                raise ValueError(
                    f"{anatomy.family} has no attention that could be compared. Use losses on hidden states, "
                    f"relations or logits with it, not {type(self).__name__}."
                )
        self.pairs = mapped_layers(self.layers, student, teacher)
        self.prefixes = (student.prefix_tokens, teacher.prefix_tokens)
        for ours, theirs in self.pairs:
            own, other = student.window_of(ours), teacher.window_of(theirs)
            if own is not None and other is not None and own != other:
                raise ValueError(
                    f"{type(self).__name__} compares attention place by place, got {_told(own)} in layer {ours} of "
                    f"{student.family} (student) and {_told(other)} in layer {theirs} of {teacher.family} (teacher): "
                    "their places are not the same. Take models with the same patches and windows, or losses on "
                    "hidden states, relations or logits."
                )

    def needs(self) -> tuple[Needs, Needs]:
        """The attention of the mapped layers."""
        student, teacher = layer_sets(self.pairs)
        return self.needs_of(student), self.needs_of(teacher)

    @abstractmethod
    def needs_of(self, layers: frozenset[int]) -> Needs:
        """The kind of attention knowledge that `compare` reads, for these layers."""

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum of `compare` over the mapped layers."""
        values = [self.compare(*self.shared(pair, student, teacher), batch.mask) for pair in self.pairs]
        return torch.stack(values).sum()

    def shared(
        self, pair: tuple[int, int], student: Representations, teacher: Representations
    ) -> tuple[Attention, Attention]:
        """Both sides' attention of a pair of layers, between the tokens that both have.

        A special token of an image model that the other lacks (DeiT's distillation token) is taken out, as if it had
        not been attended to.
        """
        kept = min(self.prefixes)
        ours, theirs = (
            without_tokens(side.attentions[layer], kept, prefix)
            for side, layer, prefix in zip((student, teacher), pair, self.prefixes, strict=True)
        )
        return ours, theirs

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


def mapped_layers(layers: LayerMap, student: Anatomy, teacher: Anatomy) -> tuple[tuple[int, int], ...]:
    """The pairs (student layer, teacher layer) of a layer map.

    A teacher with stages (Swin, ConvNeXt, ResNet) has few of them: where the student has more layers, a rule that
    spreads or aligns the student's layers over the teacher's does so the other way round, so that 12 layers and 4
    stages give (3, 1), (6, 2), (9, 3), (12, 4).
    """
    if teacher.stages is not None and teacher.depth < student.depth and layers.name in _EITHER_WAY:
        return tuple((ours, theirs) for theirs, ours in layers.resolve(teacher.depth, student.depth))
    return layers.resolve(student.depth, teacher.depth)


def pair_widths(pairs: Sequence[tuple[int, int]], student: Anatomy, teacher: Anatomy) -> list[tuple[int, int]]:
    """The widths (D_student, D_teacher) of each pair of layers.

    Raises:
        ValueError: a family that does not tell them.
    """
    return [(student.width_of(ours), teacher.width_of(theirs)) for ours, theirs in pairs]


def _told(window: Window) -> str:
    windows = f"{window.windows} {'shifted ' if window.shifted else ''}windows of " if window.windows > 1 else ""
    return f"{windows}{window.places} places"


def without_tokens(attention: Attention, kept: int, prefix: int) -> Attention:
    """Attention without the tokens from number `kept` to `prefix`, neither as queries nor as keys."""
    if kept == prefix:
        return attention

    def cut(tensor: Tensor | None, *axes: int) -> Tensor | None:
        if tensor is None:
            return None
        for axis in axes:
            if tensor.shape[axis] > 1:  # 1 stands for all queries or keys
                first, _, rest = tensor.tensor_split((kept, prefix), dim=axis)
                tensor = torch.cat([first, rest], dim=axis)
        return tensor

    given = cut(attention.given_probabilities, 2, 3)
    return replace(
        attention,
        query=cut(attention.query, 2),
        key=cut(attention.key, 2),
        value=cut(attention.value, 2),
        bias=cut(attention.bias, 2, 3),
        allowed=cut(attention.allowed, 2, 3),
        given_probabilities=None if given is None else given / given.sum(-1, keepdim=True),
        given_scores=cut(attention.given_scores, 2, 3),
    )
