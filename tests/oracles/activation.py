"""Oracles of activation knowledge."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hfdistill.functional.activation import (
    activation_attention,
    activation_map,
    channel_kl,
    neuron_selectivity,
    token_gram,
    token_similarity,
)


def nst_gauss(s: Tensor, t: Tensor, sigma2: float | None = None, mask: Tensor | None = None) -> Tensor:
    return neuron_selectivity(s, t, mask, "gaussian", sigma2)


ORACLES: dict[str, Callable[..., Any]] = {
    "at_map": lambda x, p=2, mask=None: activation_map(x, mask, p),
    "at_code": lambda s, t, p=2, mask=None: activation_attention(s, t, mask, p),
    "at_paper": lambda s, t, p=2, mask=None: activation_attention(s, t, mask, p, "paper"),
    "nst_poly": lambda s, t, mask=None: neuron_selectivity(s, t, mask),
    "nst_linear": lambda s, t, mask=None: neuron_selectivity(s, t, mask, "linear"),
    "nst_gauss": nst_gauss,
    "token_gram_mse": lambda s1, s2, t1, t2, mask=None: token_gram(s1, s2, t1, t2, mask),
    "cwd": lambda s, t, T=1.0, mask=None: channel_kl(s, t, T, mask),
    "spatial_pairwise": lambda s, t, mask=None: token_similarity(s, t, mask),
}
