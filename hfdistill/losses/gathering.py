"""Rows of all processes, with their gradients: what a loss over a batch needs where the batch is spread.

Every process computes the loss of the whole batch; in the backward pass each gets back the sum of what all processes
send to its own rows. Data-parallel training averages gradients over the processes, and the objective's scales sum to
the number of processes, so the gradient is that of one process with the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def gathered_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all processes, in the order of their ranks; `rows` itself where there is one process.

    Args:
        rows: (B, ...); B may differ between processes, the other sizes must not.

    Returns:
        (sum of B over the processes, ...), with a gradient to this process's rows.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    gathered: Tensor = _Gathering.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


class _Gathering(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        kind, rows = rows.dtype, rows.byte() if rows.dtype == torch.bool else rows  # gloo gathers no booleans
        sizes = rows.new_zeros(distributed.get_world_size(), dtype=torch.long)
        sizes[distributed.get_rank()] = len(rows)
        distributed.all_reduce(sizes)
        counts = sizes.tolist()
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        ctx.start, ctx.size = sum(counts[: distributed.get_rank()]), len(rows)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(kind)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        distributed.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.size]
