"""What a teacher shows of a batch, cut into rows that can be kept, and put together as the batch of another day.

Padding is left out of what is kept: a row is padded again as the batch is that it comes back in. Tensors are named by
kind and layer ("hidden_states/3", "attention_scores/12/scores"). What a row has not (a mask where every pair of tokens
is allowed, a bias of 0) is an empty tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.losses.pooling import pooled_vector
from hfdistill.representations import Attention, Needs, Representations

_HEADS = ("class_logits", "distillation_logits")
_PROJECTIONS = ("query", "key", "value", "bias", "allowed", "scaling")
_MAPS = ("bias", "allowed", "scores", "attention_probabilities")
_CONSTANTS = ("scaling", "size")
"""The same number for all rows."""
_TOKEN_AXES = {
    **dict.fromkeys(("logits", "hidden_states", "top_classes"), (0,)),
    **dict.fromkeys(("query", "key", "value"), (2,)),
    **dict.fromkeys(_MAPS, (2, 3)),
}
"""Last or else first part of a name -> which axes of a row's tensor are its tokens."""


@dataclass
class Entries:
    """Which tensors are kept of each row, and how they are cut and joined.

    Args:
        needs: what is to be known of the teacher; see Objective.cached_needs.
        teacher: its anatomy.

    Attributes:
        kinds: names of the tensors.

    Raises:
        ValueError: something of it cannot be kept.
    """

    needs: Needs
    teacher: Anatomy
    kinds: tuple[str, ...] = field(init=False)
    _constants: dict[str, Tensor] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Settle how top classes are kept, and name the tensors."""
        if self.needs.output_head:
            raise ValueError(
                "the objective reads the teacher's output head itself (a divergence over a large vocabulary), which "
                "a cache of rows does not hold. Use TopKLoss, which needs the likely classes alone, or leave the "
                "cache off."
            )
        if len({temperature for _, temperature in self.needs.top_classes}) > 1:
            # no logits could stand for the mass of all others at several temperatures
            self.needs = (self.needs | Needs(logits=True)).without_repetition()
        self.kinds = tuple(_kinds(self.needs, self.teacher))

    def rows(self, shown: Representations, real: Tensor | None, size: int) -> list[dict[str, Tensor]]:
        """Each row's tensors, on the CPU.

        Args:
            shown: what the teacher showed of a batch: at least `needs`.
            real: (B, N) bool, where the teacher's tokens stand; None: no place is padding.
            size: number of rows B.

        Raises:
            ValueError: it did not show everything, or what belongs to which row or token cannot be said.
        """
        tensors = {name: value.detach().cpu() for name, value in self._of_batch(shown, real).items()}
        if lacking := [name for name in self.kinds if name not in tensors]:
            raise ValueError(f"the teacher did not show {', '.join(lacking[:4])}, which is to be kept of each row.")
        places = None if real is None else Places(real.cpu())
        rows: list[dict[str, Tensor]] = [{} for _ in range(size)]
        for name in self.kinds:
            for number, row in enumerate(_cut(name, tensors[name], size)):
                taken = row if places is None else places.taken(name, row, number)
                rows[number][name] = _worth_keeping(name, taken)
        return rows

    def batch(self, rows: Sequence[Mapping[str, Tensor]], real: Tensor | None) -> dict[str, Tensor]:
        """Rows as one batch, padded as this one is: name -> (B, ...) on the CPU, as precise as it was kept.

        Args:
            rows: as `rows` gave them.
            real: (B, N) bool, where the tokens stand in this batch; None: no place is padding.
        """
        places = None if real is None or bool(real.all()) else Places(real)
        joined = {}
        for name in self.kinds:
            parts = [row[name] for row in rows]
            masks = name.endswith("/allowed")
            like = next((part for part in parts if part.dim() > 1 or part.numel()), None)
            if like is not None:
                parts = [_filled(part, like, at, places, masks) for at, part in enumerate(parts)]
                joined[name] = torch.stack(parts) if places is None else places.padded(name, parts)
            elif masks and places is not None:
                joined[name] = places.real[:, None, None, None, :]  # (B, 1, 1, 1, N)
        return joined

    def representations(self, batch: Mapping[str, Tensor]) -> Representations:
        """What a batch of `batch` shows, float32 or wider, on the device where it lies."""
        found = {name: _wide(value) for name, value in batch.items()}
        return Representations(
            logits=found["logits"] if self.needs.logits else self._dense_logits(found),
            class_logits=found.get("class_logits"),
            distillation_logits=found.get("distillation_logits"),
            hidden_states={layer: found[f"hidden_states/{layer}"] for layer in self.needs.hidden_states},
            pooled_states={(at, how): found[f"pooled_states/{at}/{how}"] for at, how in self.needs.pooled_states},
            attentions={layer: self._attention(layer, found) for layer in self.needs.attention_layers},
        )

    def _of_batch(self, shown: Representations, real: Tensor | None) -> dict[str, Tensor]:
        """Name -> tensor of all rows, where the teacher showed it."""
        found = {name: value for name in ("logits", *_HEADS) if (value := vars(shown)[name]) is not None}
        found |= {f"hidden_states/{layer}": state for layer, state in shown.hidden_states.items()}
        for layer, pooling in self.needs.pooled_states:
            state, pooled = shown.hidden_states.get(layer), shown.pooled_states.get((layer, pooling))
            if pooled is None and state is not None:
                pooled = pooled_vector(state, None if real is None else real.to(state.device), pooling)
            if pooled is not None:
                found[f"pooled_states/{layer}/{pooling}"] = pooled
        for layer, attention in shown.attentions.items():
            found |= _of_attention(layer, attention, self.needs)
        if shown.logits is not None:
            for k, temperature in _top_classes(self.needs):
                found |= _of_top_classes(shown.logits, k, temperature)
        return found

    def _attention(self, layer: int, found: Mapping[str, Tensor]) -> Attention:
        """One layer's, of all that was kept of it; a row's windows lie one after the other, as in a live pass."""

        def flat(name: str) -> Tensor | None:
            return found[name].flatten(0, 1) if name in found else None  # (B, windows, ...) -> (B * windows, ...)

        own, scores = f"projections/{layer}", f"attention_scores/{layer}"
        if layer in self.needs.projections:
            scaling = float(self._constant(f"{own}/scaling", found).view(torch.float64))
            parts = {part: flat(f"{own}/{part}") for part in ("query", "key", "value", "bias", "allowed")}
            return Attention(**parts, scaling=scaling)
        return Attention(
            allowed=flat(f"{scores}/allowed"),
            given_scores=flat(f"{scores}/scores"),
            given_probabilities=flat(f"attention_probabilities/{layer}"),
        )

    def _dense_logits(self, found: Mapping[str, Tensor]) -> Tensor | None:
        """Logits (B, K) or (B, N, K) that say what was kept of the k most likely classes."""
        for k, temperature in _top_classes(self.needs):
            name = f"top_classes/{k}/{temperature}"
            size = int(self._constant(f"{name}/size", found))
            return dense_logs(found[f"{name}/logs"], found[f"{name}/classes"].long(), size) * temperature
        return None

    def _constant(self, name: str, found: Mapping[str, Tensor]) -> Tensor:
        """A number of the teacher's, (1,) on the CPU: read once, so that no later step waits for the device."""
        if name not in self._constants:
            self._constants[name] = found[name][0].cpu()
        return self._constants[name]


class Places:
    """Where the tokens of each row of a batch stand.

    Args:
        real: (B, N) bool, on the CPU.
    """

    def __init__(self, real: Tensor) -> None:
        self.real = real
        self.counts: list[int] = real.sum(dim=1).tolist()
        first: list[int] = real.int().argmax(dim=1).tolist()
        runs = [bool(row[at : at + n].all()) for row, at, n in zip(real, first, self.counts, strict=True)]
        self._slices = [
            slice(at, at + n) if run else None for at, n, run in zip(first, self.counts, runs, strict=True)
        ]

    def taken(self, name: str, row: Tensor, number: int) -> Tensor:
        """The tokens of a row, without its padding."""
        length, run, axes = self.real.shape[1], self._slices[number], _axes(name, row)
        if len(axes) == 2 and row.shape[2] == 1:  # a mask of the keys alone
            row = row.expand(-1, -1, length, -1)
        for axis in axes:
            if row.shape[axis] != length:
                raise ValueError(
                    f"the teacher's {name} has {row.shape[axis]} places for {length} tokens, so that it is not known "
                    "which of them are padding. This family's layers cannot be kept; leave the cache off."
                )
            if run is None:
                row = row.index_select(axis, self.real[number].nonzero()[:, 0])
            else:
                row = row.narrow(axis, run.start, run.stop - run.start)
        return row

    def padded(self, name: str, parts: Sequence[Tensor]) -> Tensor:
        """Rows of tokens as one tensor (B, ...), 0 where the batch is padded."""
        axes, shape = _axes(name, parts[0]), list(parts[0].shape)
        for axis in axes:
            shape[axis] = self.real.shape[1]
        joined = parts[0].new_zeros((len(parts), *shape))
        for number, part in enumerate(parts):
            run = self._slices[number]
            if run is not None:
                joined[number][tuple(run if axis in axes else slice(None) for axis in range(part.dim()))] = part
                continue
            for axis in axes:
                wider = list(part.shape)
                wider[axis] = self.real.shape[1]
                part = part.new_zeros(wider).index_copy(axis, self.real[number].nonzero()[:, 0], part)
            joined[number] = part
        return joined


def dense_logs(logs: Tensor, classes: Tensor, size: int) -> Tensor:
    """Log-probabilities of all classes where only the k most likely are known: the others share what is left evenly.

    Args:
        logs: (..., k + 1) log-probabilities of these classes, and of all others together.
        classes: (..., k) their numbers.
        size: number of classes K.
    """
    top, rest = logs[..., :-1], logs[..., -1:]  # (..., k), (..., 1)
    share = rest - math.log(max(size - classes.shape[-1], 1))
    # rounded as they were kept, the shares of a flat distribution could come out above the last of the k classes
    below = torch.nextafter(top.amin(dim=-1, keepdim=True), torch.full_like(rest, -math.inf))
    return torch.minimum(share, below).expand(*share.shape[:-1], size).scatter(-1, classes, top)


def _kinds(needs: Needs, teacher: Anatomy) -> Iterator[str]:
    if needs.logits:
        yield from ("logits", *(_HEADS if teacher.distillation_head else ()))
    for k, temperature in _top_classes(needs):
        yield from (f"top_classes/{k}/{temperature}/{part}" for part in ("logs", "classes", "size"))
    yield from (f"hidden_states/{layer}" for layer in sorted(needs.hidden_states))
    yield from (f"pooled_states/{layer}/{pooling}" for layer, pooling in sorted(needs.pooled_states))
    for layer in sorted(needs.attention_layers):
        if layer in needs.projections:  # scores and probabilities follow from these
            yield from (f"projections/{layer}/{part}" for part in _PROJECTIONS)
        elif layer in needs.attention_scores:
            yield from (f"attention_scores/{layer}/{part}" for part in ("scores", "allowed"))
        else:
            yield f"attention_probabilities/{layer}"


def _top_classes(needs: Needs) -> list[tuple[int, float]]:
    """The one entry that answers for all, of the most classes; none beside logits."""
    return [] if needs.logits or not needs.top_classes else [max(needs.top_classes)]


def _of_attention(layer: int, attention: Attention, needs: Needs) -> dict[str, Tensor]:
    nothing = torch.zeros(0)
    allowed = nothing.bool() if attention.allowed is None else attention.allowed
    if layer in needs.projections and attention.query is not None:
        own = {part: vars(attention)[part] for part in ("query", "key", "value", "bias")}
        # its bits, which no precision rounds
        own |= {
            "allowed": allowed,
            "scaling": torch.tensor([attention.scaling], dtype=torch.float64).view(torch.int64),
        }
        return {f"projections/{layer}/{part}": nothing if one is None else one for part, one in own.items()}
    if layer in needs.attention_scores:
        name = f"attention_scores/{layer}"
        return {f"{name}/scores": attention.scores, f"{name}/allowed": allowed}
    if layer in needs.attention_probabilities:
        return {f"attention_probabilities/{layer}": attention.probabilities}
    return {}


def _of_top_classes(logits: Tensor, k: int, temperature: float) -> dict[str, Tensor]:
    logs = (_wide(logits) / temperature).log_softmax(dim=-1)
    top, classes = logs.topk(min(k, logs.shape[-1]), dim=-1)
    rest = logs.scatter(-1, classes, -math.inf).logsumexp(dim=-1, keepdim=True)
    name, size = f"top_classes/{k}/{temperature}", torch.tensor([logits.shape[-1]])
    kept = {"logs": torch.cat([top, rest], dim=-1), "classes": classes.to(torch.int32), "size": size}
    return {f"{name}/{part}": value for part, value in kept.items()}


def _cut(name: str, tensor: Tensor, size: int) -> Sequence[Tensor]:
    """A batch's tensor row by row; of attention with a leading axis, of the windows that a layer cuts a row into."""
    kind, _, rest = name.partition("/")
    if rest.endswith(_CONSTANTS) or (tensor.dim() == 1 and not tensor.numel()):
        return [tensor] * size
    if kind not in ("projections", "attention_scores", "attention_probabilities"):
        return tensor.unbind()
    if tensor.shape[0] == 1:  # the same for all rows
        return [tensor] * size
    if tensor.shape[0] % size:
        raise ValueError(
            f"the teacher's {name} has {tensor.shape[0]} entries for {size} rows, so that it is not known which "
            "belong to which row. This family's attention cannot be kept; leave the cache off."
        )
    return tensor.reshape(size, -1, *tensor.shape[1:]).unbind()


def _axes(name: str, row: Tensor) -> tuple[int, ...]:
    """The axes of a row's tensor that are tokens; logits of a row as a whole (K,) have none."""
    parts = name.split("/")
    axes = _TOKEN_AXES.get(parts[-1], _TOKEN_AXES.get(parts[0], ()))
    return () if (axes == (0,) and row.dim() != 2) or row.dim() < 2 else axes


def _worth_keeping(name: str, row: Tensor) -> Tensor:
    """A row's tensor; nothing in place of a mask that allows everything, or of a bias of 0."""
    part = name.rpartition("/")[2]
    if part not in ("bias", "allowed") or row.dim() == 1:
        return row
    if bool(row.all()) if part == "allowed" else not bool(row.any()):
        return row.new_zeros(0)
    return row


def _filled(part: Tensor, like: Tensor, number: int, places: Places | None, masks: bool) -> Tensor:
    """A row's tensor; where it has none and others of the batch have, what none means."""
    if part.dim() > 1 or part.numel():
        return part
    tokens = like.shape[-1] if places is None else places.counts[number]
    return like.new_full((*like.shape[:2], tokens, tokens), masks)


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() and value.dtype != torch.float64 else value
