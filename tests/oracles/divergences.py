"""Oracles of bounded divergences, of a teacher's top classes, and of another vocabulary."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hfdistill.functional.divergences import (
    generalized_jsd,
    skewed_forward_cross_entropy,
    skewed_forward_kl,
    skewed_reverse_kl,
    top_k_kl,
    universal_logit,
)
from oracles.response import valid_labels


def span_mask(logits: Tensor, spans: Tensor) -> Tensor:
    """Each row's span, a start and a length, as a mask (B, N)."""
    start, length = spans.long().unsqueeze(-1).unbind(1)  # (B, 1)
    places = torch.arange(logits.shape[1])
    return (places >= start) & (places < start + length)


def uld(s: Tensor, t: Tensor, s_spans: Tensor, t_spans: Tensor, T: float = 1.0, top: int | None = None) -> Tensor:
    return universal_logit(s, t, T, span_mask(s, s_spans), span_mask(t, t_spans), top)


ORACLES: dict[str, Callable[..., Any]] = {
    "generalized_jsd": lambda s, t, labels=None, beta=0.5, T=1.0: generalized_jsd(s, t, beta, T, valid_labels(labels)),
    "skew_forward_kl": lambda s, t, labels=None, alpha=0.1, T=1.0: skewed_forward_kl(
        s, t, alpha, T, valid_labels(labels)
    ),
    "skew_forward_ce": lambda s, t, labels=None, alpha=0.1, T=1.0: skewed_forward_cross_entropy(
        s, t, alpha, T, valid_labels(labels)
    ),
    "skew_reverse_kl": lambda s, t, labels=None, alpha=0.1, T=1.0: skewed_reverse_kl(
        s, t, alpha, T, valid_labels(labels)
    ),
    "topk_kl": lambda s, t, k, labels=None, missing="zero", T=1.0: top_k_kl(
        s, t, int(k), T, valid_labels(labels), missing
    ),
    "uld": uld,
}
