"""One vector per row, of the states of its tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.representations import Representations


def pooled_vector(hidden: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """One vector per row, (B, D), of hidden states (B, N, D).

    Args:
        hidden: (B, N, D).
        mask: (B, N), 1 = real token, or None.
        pooling: "cls" takes the first token, "last" the last real one (causal models), "mean" the mean of the real
            tokens, in float32 or wider.
    """
    return POOLINGS[pooling](hidden, mask)


def teacher_vector(teacher: Representations, layer: int, mask: Tensor | None, pooling: str) -> Tensor:
    """One vector per row of a teacher's layer, (B, D): the one that was kept, or of the states that it shows.

    Args:
        teacher: what the teacher shows.
        layer: 0 is the embedding output.
        mask: (B, N) of the teacher's tokens, or None.
        pooling: see pooled_vector.
    """
    kept = teacher.pooled_states.get((layer, pooling))
    return pooled_vector(teacher.hidden_states[layer], mask, pooling) if kept is None else kept


def _cls(hidden: Tensor, mask: Tensor | None) -> Tensor:
    return hidden[:, 0]  # (B, D)


def _last(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden[:, -1]  # (B, D)
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    last = (positions * mask).argmax(dim=1)  # (B,) right for padding on either side
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]  # (B, D)


def _mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32  # half precision would round the mean
    if mask is None:
        return hidden.mean(dim=1, dtype=wide)  # (B, D)
    kept = mask.bool().unsqueeze(-1)  # (B, N, 1)
    total = hidden.masked_fill(~kept, 0.0).sum(dim=1, dtype=wide)  # (B, D)
    return total / kept.sum(dim=1).clamp(min=1)


POOLINGS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {"cls": _cls, "mean": _mean, "last": _last}
"""How token states become one vector per row."""


def settled_poolings(pooling: str, student: Anatomy, teacher: Anatomy) -> tuple[str, str]:
    """How each side is pooled: as asked, but by the mean over its places where it has no class token for "cls".

    Such are Swin and convolutional models, whose own classifiers look at that mean.
    """
    ours, theirs = (
        "mean" if pooling == "cls" and not anatomy.class_token else pooling for anatomy in (student, teacher)
    )
    return ours, theirs
