"""Random representations, for tests of losses: what one pass of a small student and of a larger teacher would show.

A `Scene` holds both sides and their batch. It can be padded further, cut to some of its rows, cast and watched for
gradients; each of these gives a new scene. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.representations import IGNORE_INDEX, Attention, Batch, OutputHead, Representations

ROWS, TOKENS, WORDS = "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"
SHARED = -1
"""In place of an axis of tokens: a tensor that all rows share, such as the weight of a head."""
LENGTHS = (5, 2, 4)
"""Real tokens of each row."""
DATA_LABELS = torch.arange(16) % 3
"""Class of each row of the training set that the rows of a scene are from."""


def toy_anatomy(width: int = 8, depth: int = 2, heads: int = 2, head: str = ROWS, classes: int = 3) -> Anatomy:
    """A text model that can show everything."""
    return Anatomy(
        "toy", depth, width, heads, attention="interface", vocabulary=64, classes=classes, head=head, input_names=()
    )


STUDENT = toy_anatomy()
TEACHER = toy_anatomy(width=12, depth=4)


@dataclass
class Scene:
    """What both models showed of one batch."""

    student: Representations
    teacher: Representations
    batch: Batch

    def parts(self) -> tuple[Representations, Representations, Batch]:
        """The arguments of a loss."""
        return self.student, self.teacher, self.batch

    def padded(self, extra: int, student_filler: float, teacher_filler: float) -> Scene:
        """`extra` more tokens of padding; every padded place, old or new, holds a filler instead of numbers."""
        mask = _longer(_mask(self), 1, extra, False)
        labels = self.batch.labels
        if labels is not None and labels.dim() == 2:
            labels = _longer(labels, 1, extra, IGNORE_INDEX)

        def pad(filler: float) -> Callable[[Tensor, int | None], Tensor]:
            def change(tensor: Tensor, axis: int | None) -> Tensor:
                if axis is None or axis == SHARED:
                    return tensor
                filled = 0 if tensor.dtype == torch.bool else filler
                shape = [1] * tensor.dim()
                shape[0], shape[axis] = mask.shape
                return _longer(tensor, axis, extra, filled).masked_fill(~mask.view(shape), filled)

            return change

        batch = replace(self.batch, mask=mask.long(), labels=labels)
        return Scene(mapped(self.student, pad(student_filler)), mapped(self.teacher, pad(teacher_filler)), batch)

    def rows(self, chosen: slice) -> Scene:
        """Some of the rows, padded no further than the longest of them needs."""
        mask = _mask(self)[chosen]
        tokens = int(mask.sum(1).max())

        def cut(tensor: Tensor, axis: int | None) -> Tensor:
            if axis == SHARED:
                return tensor
            return tensor[chosen] if axis is None else tensor[chosen].narrow(axis, 0, tokens)

        labels = self.batch.labels
        if labels is not None:
            labels = cut(labels, 1 if labels.dim() == 2 else None)
        index = None if self.batch.index is None else self.batch.index[chosen]
        batch = replace(self.batch, size=len(mask), mask=mask[:, :tokens].long(), labels=labels, index=index)
        return Scene(mapped(self.student, cut), mapped(self.teacher, cut), batch)

    def watched(self) -> Scene:
        """All numbers as fresh leaves that require gradients, on both sides."""

        def watch(tensor: Tensor, _: int | None) -> Tensor:
            return tensor.detach().clone().requires_grad_(tensor.is_floating_point())

        return Scene(mapped(self.student, watch), mapped(self.teacher, watch), self.batch)

    def to(self, dtype: torch.dtype) -> Scene:
        """All numbers of both sides in another precision."""

        def cast(tensor: Tensor, _: int | None) -> Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        return Scene(mapped(self.student, cast), mapped(self.teacher, cast), self.batch)

    def nothing_valid(self) -> Scene:
        """The same numbers, of which none counts: all is padding, and all labels are ignored."""
        assert self.batch.labels is not None
        mask, labels = torch.zeros_like(_mask(self)), torch.full_like(self.batch.labels, IGNORE_INDEX)
        return replace(self, batch=replace(self.batch, mask=mask, labels=labels))


def toy_scene(
    student: Anatomy = STUDENT, teacher: Anatomy = TEACHER, lengths: Sequence[int] = LENGTHS, seed: int = 0
) -> Scene:
    """Random float32 numbers of both sides; one label is ignored, and the padding holds numbers like any other."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # (B, N)
    shape = (len(lengths), max(lengths)) if student.head in (TOKENS, WORDS) else (len(lengths),)
    labels = torch.randint(0, student.classes, shape, generator=generator)
    if student.head in (TOKENS, WORDS):
        labels = labels.masked_fill(~mask, IGNORE_INDEX)
    labels[-1] = IGNORE_INDEX
    ours, theirs = (_shown(anatomy, mask, (*shape, anatomy.classes), generator) for anatomy in (student, teacher))
    index = torch.arange(len(lengths)) * 4 + 1  # somewhere in the training set, not its first rows
    return Scene(ours, theirs, Batch(len(lengths), labels, mask.long(), index=index))


def leaves(shown: Representations) -> list[Tensor]:
    """Every tensor of numbers."""
    found: list[Tensor] = []

    def note(tensor: Tensor, _: int | None) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(shown, note)
    return [tensor for tensor in found if tensor.is_floating_point()]


def rebuilt(shown: Representations, tensors: Iterator[Tensor]) -> Representations:
    """The same representations made of other tensors, in the order of `leaves`."""
    return mapped(shown, lambda tensor, _: next(tensors) if tensor.is_floating_point() else tensor)


def mapped(shown: Representations, change: Callable[[Tensor, int | None], Tensor]) -> Representations:
    """New representations of changed tensors; `change` is given a tensor and the axis of its tokens, or SHARED."""
    logits, head = shown.logits, shown.output_head
    if head is not None:
        features, head = change(head.features, 1), head.changed(lambda tensor: change(tensor, SHARED))
        head = head._replace(features=features)
    return Representations(
        logits=None if logits is None else change(logits, 1 if logits.dim() == 3 else None),
        hidden_states={layer: change(state, 1) for layer, state in shown.hidden_states.items()},
        attentions={layer: _mapped_attention(attention, change) for layer, attention in shown.attentions.items()},
        output_head=head,
    )


def _mapped_attention(attention: Attention, change: Callable[[Tensor, int | None], Tensor]) -> Attention:
    axes = {"query": 2, "key": 2, "value": 2, "allowed": 3}
    held = {name: vars(attention)[name] for name in axes}
    return Attention(scaling=attention.scaling, **{name: change(held[name], axis) for name, axis in axes.items()})


def _shown(anatomy: Anatomy, mask: Tensor, logits: tuple[int, ...], generator: torch.Generator) -> Representations:
    rows, tokens = mask.shape

    def attention() -> Attention:
        shape = (3, rows, anatomy.heads, tokens, anatomy.width // anatomy.heads)
        query, key, value = torch.randn(shape, generator=generator)
        return Attention(query, key, value, scaling=shape[-1] ** -0.5, allowed=mask[:, None, None])  # (B, 1, 1, N)

    def head() -> OutputHead:
        shapes = (rows, tokens, anatomy.width), (anatomy.classes, anatomy.width), (anatomy.classes,)
        return OutputHead(*(torch.randn(shape, generator=generator) for shape in shapes))

    return Representations(
        logits=torch.randn(logits, generator=generator),
        hidden_states={
            layer: torch.randn(rows, tokens, anatomy.width, generator=generator) for layer in range(anatomy.depth + 1)
        },
        attentions={layer: attention() for layer in range(1, anatomy.depth + 1)},
        output_head=head() if anatomy.head == WORDS else None,
    )


def _mask(scene: Scene) -> Tensor:
    assert scene.batch.mask is not None
    return scene.batch.mask.bool()


def _longer(tensor: Tensor, axis: int, extra: int, filler: float) -> Tensor:
    shape = list(tensor.shape)
    shape[axis] = extra
    return torch.cat([tensor, tensor.new_full(shape, filler)], dim=axis)
