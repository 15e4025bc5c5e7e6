"""Oracles of knowledge review."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hfdistill.functional.review import gated_fusion, hierarchical_context


def hcl_2d(s: Tensor, t: Tensor) -> Tensor:
    places = [side.flatten(2).transpose(1, 2) for side in (s, t)]  # (B, N, D)
    return hierarchical_context(*places, sides=(s.shape[2], s.shape[3]))


ORACLES: dict[str, Callable[..., Any]] = {
    "hcl_2d": hcl_2d,
    "hcl_1d": lambda s, t, mask=None: hierarchical_context(s, t, mask),
    "abf_fuse": lambda x, y, W, b: gated_fusion(x, y, W, b),
}
