"""Oracles of contrast."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hfdistill import functional as F


def cos_nce(zs: Tensor, zt: Tensor, neg: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    if neg is None or not neg.numel():  # JSON writes (B, 0, D) as B empty lists
        neg = zs.new_zeros(zs.shape[0], 0, zs.shape[1])
    return F.cos_nce(zs, zt, neg, mask=mask)


ORACLES: dict[str, Callable[..., Any]] = {
    "cos_nce": cos_nce,
}
