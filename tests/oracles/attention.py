"""Oracles of attention knowledge."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hfdistill import functional as F


def minilm_v1(
    qs: Tensor, ks: Tensor, vs: Tensor, qt: Tensor, kt: Tensor, vt: Tensor, heads: int, mask: Tensor | None = None
) -> Tensor:
    return F.relation_kl(qs, ks, qt, kt, heads, mask) + F.relation_kl(vs, vs, vt, vt, heads, mask)


def minilm_v2(
    qs: Tensor, ks: Tensor, vs: Tensor, qt: Tensor, kt: Tensor, vt: Tensor, heads: int, mask: Tensor | None = None
) -> Tensor:
    pairs = ((qs, qt), (ks, kt), (vs, vt))
    return torch.stack([F.relation_kl(own, own, theirs, theirs, heads, mask) for own, theirs in pairs]).mean()


ORACLES: dict[str, Callable[..., Any]] = {
    "tinybert_att": lambda s, t: F.attention_score_mse_tinybert(s, t),
    "att_mse_masked": lambda s, t, mask=None: F.attention_score_mse(s, t, mask),
    "relation_kl": lambda xs, ys, xt, yt, heads, mask=None: F.relation_kl(xs, ys, xt, yt, heads, mask),
    "minilm_v1": minilm_v1,
    "minilm_v2": minilm_v2,
}
