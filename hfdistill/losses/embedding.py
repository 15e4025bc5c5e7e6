"""One space for the vectors of both models: what contrast with other rows happens in."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy
from hfdistill.functional.reductions import blanked, unit
from hfdistill.losses.base import DistillationLoss, choose
from hfdistill.losses.layerwise import Layers, layer_sets, mapped_layers, pair_widths, parse_layers
from hfdistill.losses.pooling import POOLINGS, pooled_vector, settled_poolings, teacher_vector
from hfdistill.representations import Batch, Needs, Representations
from hfdistill.schedules import Schedule


class Embedding(nn.Module):
    """Maps the vectors of both models to the unit sphere of one space, each by a linear layer of its own.

    Both layers are learnt and begin as PyTorch's do. A contrast is not won by mapping all rows to one point, so the
    teacher's layer may be learnt too.

    Args:
        student_width: D of the student.
        teacher_width: D of the teacher.
        dimension: D of the common space.
    """

    def __init__(self, student_width: int, teacher_width: int, dimension: int) -> None:
        super().__init__()
        self.student = nn.Linear(student_width, dimension)
        self.teacher = nn.Linear(teacher_width, dimension)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The student's width, the teacher's, and the dimension of the common space."""
        return self.student.in_features, self.teacher.in_features, self.student.out_features

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D_student) and (B, D_teacher) as two (B, dimension), float32 or wider, of length 1."""
        return _embedded(self.student, student), _embedded(self.teacher, teacher)


class EmbeddedLoss(DistillationLoss):
    """Compares rows by one vector each in a common space that is learnt; subclass it and write `contrast`.

    The layer map, pooling, the embedding layers and the sum over layers are inherited.

    Args:
        dimension: D of the common space.
        layers: which student layer learns from which teacher layer; by default the last from the last.
        pooling: how the tokens of a row become one vector: "mean" of the real tokens, "cls", or "last" real token; of
            an image model without a class token always the mean instead of "cls".
        weight: see DistillationLoss.

    Raises:
        ValueError: a dimension below 1, an unknown pooling; a layer map that does not fit the two depths.
    """

    same_tokens: ClassVar[bool] = False

    def __init__(
        self,
        dimension: int = 128,
        layers: Layers = ((-1, -1),),
        pooling: str = "mean",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(weight)
        self.dimension = int(above_zero("dimension", dimension, "vectors need coordinates; the papers use 128"))
        self.layers = parse_layers(layers)
        self.pooling = choose("pooling", pooling, tuple(POOLINGS))
        self.poolings = (pooling, pooling)
        self.pairs: tuple[tuple[int, int], ...] = ()
        self.embeddings = nn.ModuleList()

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map and build the two embedding layers of each pair."""
        self.pairs = mapped_layers(self.layers, student, teacher)
        self.poolings = settled_poolings(self.pooling, student, teacher)
        wanted = [(*widths, self.dimension) for widths in pair_widths(self.pairs, student, teacher)]
        if [module.sizes for module in self.embeddings if isinstance(module, Embedding)] != wanted:
            self.embeddings = nn.ModuleList(Embedding(*sizes) for sizes in wanted)

    def needs(self) -> tuple[Needs, Needs]:
        """The hidden states of the mapped layers."""
        student, teacher = layer_sets(self.pairs)
        return Needs(hidden_states=student), Needs(hidden_states=teacher)

    def cached_needs(self) -> Needs:
        """One vector of each row at the mapped layers."""
        return Needs(pooled_states=frozenset((layer, self.poolings[1]) for _, layer in self.pairs))

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum of `contrast` over the mapped layers."""
        real = batch.real_rows()
        masks = batch.mask, batch.mask if batch.teacher_mask is None else batch.teacher_mask
        values = []
        for position, (ours, theirs) in enumerate(self.pairs):
            pooled = [
                pooled_vector(student.hidden_states[ours], masks[0], self.poolings[0]),
                teacher_vector(teacher, theirs, masks[1], self.poolings[1]).detach(),
            ]
            if real is not None:  # 0 times a NaN of padding would be a NaN in the embedding layer's gradient
                pooled = [vectors.masked_fill(~real[:, None], 0.0) for vectors in pooled]
            vector, target = self.embeddings[position](*pooled)
            values.append(self.contrast(position, vector, target, batch))
        return torch.stack(values).sum()

    @abstractmethod
    def contrast(self, position: int, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The loss of the pair of layers at `position`.

        Args:
            position: in `self.pairs`.
            student: (B, dimension) of length 1.
            teacher: (B, dimension) of length 1; its gradient goes to its embedding layer, not to the teacher.
            batch: says which rows count.
        """


def above_zero(name: str, value: float, why: str) -> float:
    """`value`, or an error that says why keyword `name` must be above 0.

    Raises:
        ValueError: `value` is not a finite number above 0.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0, got {value}: {why}.")
    return value


def _embedded(layer: nn.Linear, vectors: Tensor) -> Tensor:
    return unit(blanked(layer(vectors.to(layer.weight.dtype))))
