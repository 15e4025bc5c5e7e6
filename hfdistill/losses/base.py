"""The whole contract of a loss.

A loss says what it needs to see (`needs`), learns the two models' sizes once (`bind`), and compares (`forward`). It
gives an unweighted mean over valid items, and says how many those are (`count`), so that the objective can weigh
micro-batches and processes by them. It sees no Trainer, no transformers and no configuration file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy
from hfdistill.layer_map import LayerMap
from hfdistill.projector import Projector
from hfdistill.representations import Attention, Batch, Needs, Representations
from hfdistill.schedules import Schedule, as_schedule

Layers = str | LayerMap | Sequence[Sequence[int]]
"""A layer map, its name ("uniform", "skip", "every(2)"), or explicit (student, teacher) pairs."""


class DistillationLoss(nn.Module, ABC):
    """One term of an objective; subclass it and write `needs` and `forward`.

    Trainable parts (projectors, critics) are ordinary submodules, made in `bind`: the trainer optimises, clips,
    checkpoints and resumes them with the student, and keeps them out of the saved student.

    Args:
        weight: what the objective multiplies the value with; a number, or a Schedule of training progress.
    """

    def __init__(self, weight: float | Schedule = 1.0) -> None:
        super().__init__()
        self.weight = as_schedule(weight)

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Learn both models' sizes: resolve layer maps, build projectors, refuse what cannot be compared.

        Called before the optimizer exists, and again when the objective meets another pair of models. Binding to the
        same sizes again keeps the trainable parts, so that a later stage goes on with them.

        Raises:
            ValueError: the two models cannot be compared; the message says what to do.
        """

    @abstractmethod
    def needs(self) -> tuple[Needs, Needs]:
        """What must be seen of the student, and of the teacher. Called after `bind`."""

    @abstractmethod
    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The unweighted loss: a scalar mean over the valid items, 0 with a gradient where there is none."""

    def count(self, batch: Batch) -> Tensor:
        """Number of items that `forward` averages over, a float scalar; rows unless a loss says otherwise."""
        return batch.row_count()


class LayerwiseLoss(DistillationLoss):
    """Compares hidden states layer by layer; subclass it and write `compare`.

    The layer map, projection where widths differ, masking and the sum over layers are inherited.

    Args:
        layers: which student layer learns from which teacher layer.
        shared_projector: one projector for all layers (TinyBERT) instead of one per pair.
        weight: see DistillationLoss.
    """

    def __init__(
        self, layers: Layers = "uniform", shared_projector: bool = False, weight: float | Schedule = 1.0
    ) -> None:
        super().__init__(weight)
        self.layers = parse_layers(layers)
        self.shared_projector = shared_projector
        self.pairs: tuple[tuple[int, int], ...] = ()
        self.projectors = nn.ModuleList()

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map and build the projectors."""
        self.pairs = self.layers.resolve(student.depth, teacher.depth)
        widths = (student.width, teacher.width)
        wanted = 1 if self.shared_projector else len(self.pairs)
        made = [(projector.student_width, projector.teacher_width) for projector in self._made()]
        if made != [widths] * wanted:
            self.projectors = nn.ModuleList(Projector(*widths) for _ in range(wanted))

    def needs(self) -> tuple[Needs, Needs]:
        """The hidden states of the mapped layers."""
        student, teacher = layer_sets(self.pairs)
        return Needs(hidden_states=student), Needs(hidden_states=teacher)

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum of `compare` over the mapped layers."""
        values = [
            self.compare(
                self.project(position, student.hidden_states[ours]), teacher.hidden_states[theirs], batch.mask
            )
            for position, (ours, theirs) in enumerate(self.pairs)
        ]
        return torch.stack(values).sum()

    def project(self, position: int, hidden: Tensor) -> Tensor:
        """A student state (..., D_student) of the pair at `position` in the teacher's width, (..., D_teacher)."""
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


def choose(name: str, value: str, accepted: Sequence[str]) -> str:
    """`value`, or an error that lists what keyword `name` accepts.

    Raises:
        ValueError: `value` is not accepted.
    """
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}.")
    return value


def pooled_vector(hidden: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """One vector per row, (B, D), of hidden states (B, N, D).

    Args:
        hidden: (B, N, D).
        mask: (B, N), 1 = real token, or None.
        pooling: "cls" takes the first token, "last" the last real one (causal models), "mean" the mean of the real
            tokens.
    """
    return POOLINGS[pooling](hidden, mask)


def _cls(hidden: Tensor, mask: Tensor | None) -> Tensor:
    return hidden[:, 0]  # (B, D)


def _last(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden[:, -1]  # (B, D)
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    last = (positions * mask).argmax(dim=1)  # (B,) right for padding on either side
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]  # (B, D)


def _mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden.mean(dim=1)  # (B, D)
    kept = mask.bool().unsqueeze(-1)  # (B, N, 1)
    total = hidden.masked_fill(~kept, 0.0).sum(dim=1)  # (B, D)
    return total / kept.sum(dim=1).clamp(min=1)


POOLINGS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {"cls": _cls, "mean": _mean, "last": _last}
"""How token states become one vector per row."""
