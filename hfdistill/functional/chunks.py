"""Means over blocks of rows and heads, each with its gradient before the next one is begun.

Maps between tokens, (B, H, N, N), are the largest tensors that a loss can make. Made whole they pass through memory at
every operation and are kept for the backward pass; made a block at a time they stay in the processor's cache, and what
is kept is the gradient of what they were made of. The value is a scalar, so that a backward pass has nothing left to
do but to multiply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

CACHED_ENTRIES = 2**18
"""Of a block on a CPU, per thread: 1 MB in float32, about a core's second-level cache."""
DEVICE_ENTRIES = 2**25
"""Of a block on an accelerator, where each operation has to pay for its launch."""

Formula = Callable[..., tuple[Tensor, Tensor | int]]
"""Of one block of each tensor: the mean over it, and of how many values."""
Block = tuple[slice, slice]
Tensors = Sequence[Tensor | None]


def blockwise_mean(
    formula: Formula, student: Tensors, given: Tensors, shape: Sequence[int], whole_heads: bool = False
) -> Tensor:
    """The mean that `formula` would give of whole tensors, and its gradient, from blocks of rows and heads.

    Σ_blocks mean · count / max(Σ_blocks count, 1); 0 where nothing counts. It can be differentiated once.

    Args:
        formula: called with a block of each tensor, `student` first.
        student: (B or 1, H or 1, ...), or None, which the formula is given as it is. They get gradients, computed in
            float32 or wider.
        given: of the same shapes, without gradients: the teacher's tensors and masks.
        shape: (B, H, N, N) of the maps that it makes.
        whole_heads: of each row all heads at once, for a formula that is no mean over them.
    """
    tensors = [*student, *(None if tensor is None else tensor.detach() for tensor in given)]
    device = _device(tensors).type
    entries = CACHED_ENTRIES * torch.get_num_threads() if device == "cpu" else DEVICE_ENTRIES
    blocks = list(_blocks(shape, whole_heads, entries))
    learning = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in tensors]
    with torch.autocast(device, enabled=False):  # it would round the products within a formula to half precision
        value: Tensor = _Blockwise.apply(formula, blocks, learning, *tensors)  # type: ignore[no-untyped-call]
    return value


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, formula: Formula, blocks: Sequence[Block], learning: Sequence[bool], *tensors: Tensor | None
    ) -> Tensor:
        slopes = [
            _slope(tensor) if learns and tensor is not None else None
            for tensor, learns in zip(tensors, learning, strict=True)
        ]
        totals: list[Tensor] = []
        number = torch.zeros((), dtype=torch.long, device=_device(tensors))
        for block in blocks:
            parts = [None if tensor is None else _cut(tensor, block).detach() for tensor in tensors]
            total, count = _learnt(formula, parts, [None if slope is None else _cut(slope, block) for slope in slopes])
            totals.append(total)
            number = number + count
        number = number.clamp(min=1)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in tensors]
        ctx.save_for_backward(number, *slopes)
        return torch.stack(totals).sum() / number

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # silence would be a second derivative of 0
            raise RuntimeError(
                "expected one derivative of a mean made block by block, got create_graph=True: the blocks are gone, "
                "and with them what a second derivative is made of. Compare whole maps with the formulas of "
                "hfdistill.functional where a gradient is differentiated again."
            )
        number, *slopes = ctx.saved_tensors
        scale = gradient / number
        scaled = [
            None if slope is None else (slope * scale).to(dtype)
            for slope, dtype in zip(slopes, ctx.dtypes, strict=True)
        ]
        return None, None, None, *scaled


def _learnt(formula: Formula, parts: Tensors, slopes: Tensors) -> tuple[Tensor, Tensor | int]:
    """Sum and number of one block's values; the gradient of the sum is added to the slopes."""
    given = list(parts)
    learnt: list[tuple[Tensor, Tensor]] = []
    for place, (part, slope) in enumerate(zip(parts, slopes, strict=True)):
        if part is not None and slope is not None:
            leaf = part.to(slope.dtype).requires_grad_()
            given[place] = leaf
            learnt.append((leaf, slope))
    with torch.set_grad_enabled(bool(learnt)):
        mean, count = formula(*given)
        total = mean * count
    if total.requires_grad:
        gradients = torch.autograd.grad(total, [leaf for leaf, _ in learnt], allow_unused=True)
        for (_, slope), gradient in zip(learnt, gradients, strict=True):
            if gradient is not None:
                slope += gradient
    return total.detach(), count


def _slope(tensor: Tensor) -> Tensor:
    """Zeros for a gradient that is yet to be scaled: in half precision it could vanish or overflow until then."""
    return torch.zeros_like(tensor, dtype=tensor.dtype if tensor.dtype == torch.float64 else torch.float32)


def _cut(tensor: Tensor, block: Block) -> Tensor:
    """A block of rows and heads; an axis of 1 stands for all of them."""
    return tensor[tuple(slice(None) if size == 1 else own for size, own in zip(tensor.shape, block, strict=False))]


def _device(tensors: Tensors) -> torch.device:
    return next(tensor.device for tensor in tensors if tensor is not None)


def _blocks(shape: Sequence[int], whole_heads: bool, entries: int) -> Iterator[Block]:
    """Some heads of one row, or all heads of some rows, that make about so many entries."""
    rows, heads, queries, keys = shape
    maps = max(entries // max(queries * keys, 1), 1)
    if whole_heads or maps >= heads:
        step = max(maps // max(heads, 1), 1)
        for row in range(0, max(rows, 1), step):
            yield slice(row, row + step), slice(None)
        return
    for row in range(rows):
        for head in range(0, heads, maps):
            yield slice(row, row + 1), slice(head, head + maps)
