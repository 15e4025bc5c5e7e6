"""What a teacher showed of each row in an earlier pass, replayed: in memory, for comparisons with the live teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from hfdistill.equivalence.short_runs import NotComparableError
from hfdistill.representations import Attention, Needs, Representations
from hfdistill.teacher_tokens import own_inputs
from hfdistill.teachers import Teacher

_TOKEN_AXES = {
    "logits": (1,),
    "hidden_states": (1,),
    **dict.fromkeys(("query", "key", "value"), (2,)),
    **dict.fromkeys(("bias", "allowed", "given_probabilities"), (2, 3)),
}
"""Kind of representation -> which axes of its batch are tokens; where these are padded only the real ones are kept."""

Name = tuple[str, int]
"""Kind of representation, and the number of the layer (0 for logits)."""


@dataclass(frozen=True)
class _Row:
    """What was shown of one row, each tensor with a leading axis (of windows, where a layer has any).

    Args:
        tensors: by kind and layer.
        scalings: of the scores, by layer.
    """

    tensors: Mapping[Name, Tensor]
    scalings: Mapping[int, float]


class RecordedTeacher:
    """A Teacher that first shows what another shows and keeps it row by row, and then replays it.

    Args:
        live: the other teacher.

    Attributes:
        replaying: whether it replays; then `live` is not asked any more.
    """

    def __init__(self, live: Teacher) -> None:
        self.anatomy = live.anatomy
        self.live = live
        self.replaying = False
        self._rows: dict[tuple[Needs, str], _Row] = {}  # rows may be equal, and be asked for other things later

    def prepare(self, device: torch.device) -> None:
        """See Teacher.prepare."""
        self.live.prepare(device)

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        """See Teacher.represent.

        Raises:
            NotComparableError: a row that was not seen before, or representations that cannot be told apart by rows.
        """
        given = own_inputs(inputs) or inputs
        read = {name: given[name] for name in self.anatomy.input_names if isinstance(given.get(name), Tensor)}
        read.pop("labels", None)
        mask = read.get("attention_mask")
        real = None if mask is None or mask.dim() != 2 else mask.bool().cpu()  # (B, N)
        size = next(iter(read.values())).shape[0]
        keys = [(needs, _key(read, row, real)) for row in range(size)]
        if not self.replaying:
            shown = self.live.represent(inputs, needs)
            self._rows.update((key, _kept(shown, row, size, real)) for row, key in enumerate(keys))
            return shown
        if missing := [key for key in keys if key not in self._rows]:
            raise NotComparableError(
                f"{len(missing)} of {size} rows are not those of an earlier pass: the batches are made at random "
                "(masking, augmentation), or padded without an attention_mask that says so. What a teacher showed of "
                "a row cannot be used again."
            )
        device = next(iter(read.values())).device
        return _joined([self._rows[key] for key in keys], real, device)


def _key(inputs: Mapping[str, Tensor], row: int, real: Tensor | None) -> str:
    """A digest of what the teacher reads of a row, without its padding."""
    digest = hashlib.sha256()
    for name, value in sorted(inputs.items()):
        content = value[row].detach().cpu()
        if real is not None and content.shape[:1] == real.shape[1:]:
            content = content[real[row]]
        digest.update(f"{name} {content.dtype} {tuple(content.shape)} ".encode())
        digest.update(content.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _named(shown: Representations) -> dict[Name, Tensor]:
    found: dict[Name, Tensor | None] = {("logits", 0): shown.logits}
    found |= {("class_logits", 0): shown.class_logits, ("distillation_logits", 0): shown.distillation_logits}
    found |= {("hidden_states", layer): state for layer, state in shown.hidden_states.items()}
    for layer, attention in shown.attentions.items():
        found |= {(kind, layer): vars(attention)[kind] for kind in _ATTENTION}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


_ATTENTION = tuple(field.name for field in fields(Attention) if field.name != "scaling")


def _axes(name: Name, tensor: Tensor, tokens: int) -> list[int]:
    """The axes of a tensor that are the batch's tokens."""
    axes = _TOKEN_AXES.get(name[0], ())
    return [axis for axis in axes if axis < tensor.dim() - (name[0] == "logits") and tensor.shape[axis] == tokens]


def _kept(shown: Representations, row: int, size: int, real: Tensor | None) -> _Row:
    tensors = {}
    for name, tensor in _named(shown).items():
        kept = _of_row(name, tensor.detach(), row, size).cpu()
        if real is not None:
            for axis in _axes(name, kept, real.shape[1]):
                kept = kept.index_select(axis, real[row].nonzero()[:, 0])
        tensors[name] = kept
    return _Row(tensors, {layer: attention.scaling for layer, attention in shown.attentions.items()})


def _of_row(name: Name, tensor: Tensor, row: int, size: int) -> Tensor:
    """The part of a batch that is one row's: several entries of the first axis where a layer cuts rows in windows."""
    if tensor.shape[0] == 1:  # the same for all rows
        return tensor
    if tensor.shape[0] % size:
        raise NotComparableError(
            f"the teacher's {name[0]} of layer {name[1]} has {tensor.shape[0]} entries for {size} rows, so that it is "
            "not known which belong to which row."
        )
    return tensor.reshape(size, -1, *tensor.shape[1:])[row]


def _joined(rows: Sequence[_Row], real: Tensor | None, device: torch.device) -> Representations:
    """Rows as a batch, padded as this one is."""
    tensors: dict[Name, Tensor] = {}
    for name in rows[0].tensors:
        parts = []
        for number, row in enumerate(rows):
            part = row.tensors[name]
            if real is not None:
                part = _padded(name, part, real[number])
            parts.append(part)
        tensors[name] = torch.cat(parts).to(device)
    attentions = {
        layer: Attention(**{kind: tensors.get((kind, layer)) for kind in _ATTENTION}, scaling=scaling)
        for layer, scaling in rows[0].scalings.items()
    }
    states = {layer: tensor for (kind, layer), tensor in tensors.items() if kind == "hidden_states"}
    return Representations(
        logits=tensors.get(("logits", 0)),
        hidden_states=states,
        attentions=attentions,
        class_logits=tensors.get(("class_logits", 0)),
        distillation_logits=tensors.get(("distillation_logits", 0)),
    )


def _padded(name: Name, part: Tensor, real: Tensor) -> Tensor:
    """A row's tensor with nothing (zeros) where this batch is padded.

    Args:
        name: kind and layer.
        part: of the row, padding left out.
        real: (N,) bool, where the row's tokens stand in this batch.
    """
    places = real.nonzero()[:, 0]
    for axis in _axes(name, part, len(places)):
        shape = list(part.shape)
        shape[axis] = len(real)
        part = part.new_zeros(shape).index_copy(axis, places, part)
    return part
