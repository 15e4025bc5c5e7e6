"""What an attention module is given, read as Attention: which pairs of tokens its mask leaves, and with what bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hfdistill.representations import Attention


def read_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
    eager: bool,
) -> Attention:
    """What an attention module was given, as Attention.

    Args:
        module: the attention module.
        query: (B, H, N, d).
        key: (B, H, N, d), of fewer heads where these are grouped.
        value: as the key.
        mask: (B or 1, H or 1, N, N), or padding (B, N), or None.
        kwargs: what else the backend is given.
        eager: whether that is the family's own eager function.
    """
    scaling = kwargs.get("scaling")
    allowed, bias = _read_mask(module, query, key, mask, kwargs, eager)
    position_bias = kwargs.get("position_bias")
    if position_bias is not None:
        bias = position_bias if bias is None else bias + position_bias
    return Attention(
        query=query,
        key=key,
        value=value,
        scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        bias=bias,
        allowed=allowed,
    )


def _read_mask(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any], eager: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Split a backend's mask into allowed pairs (bool) and a finite bias."""
    if mask is None or mask.dim() != 4:
        # eager applies nothing but the mask it is given
        return None if eager else _implied_mask(module, query, key, mask, kwargs), None
    mask = mask[..., : key.shape[2]]
    if mask.dtype == torch.bool:
        return mask, None
    allowed = mask > torch.finfo(mask.dtype).min / 2
    bias = mask.masked_fill(~allowed, 0.0)
    return allowed.all(dim=1, keepdim=True), bias  # (B or 1, 1, N, N); a bias may differ between heads


def _implied_mask(
    module: nn.Module, query: Tensor, key: Tensor, padding: Tensor | None, kwargs: dict[str, Any]
) -> Tensor | None:
    """Allowed pairs where a backend is told by arguments: SDPA of causality, flash also of its window and padding."""
    causal, window = kwargs.get("is_causal"), kwargs.get("sliding_window")
    if causal is None:
        causal = getattr(module, "is_causal", True)  # the default that transformers' backends take
    if not causal and window is None and padding is None:
        return None
    keys = torch.arange(key.shape[2], device=query.device)
    ahead = keys - keys[key.shape[2] - query.shape[2] :, None]  # (N, N): how far a key lies after its query
    allowed = (ahead <= 0) | (not causal)
    if window is not None:
        allowed = allowed & (ahead.abs() < window)
    allowed = allowed[None, None]  # (1, 1, N, N)
    return allowed if padding is None else allowed & padding[:, None, None, :].bool()  # (B, 1, N, N)
