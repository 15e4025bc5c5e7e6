"""Oracles of matching: layers by attention, channels by assignment, features of auxiliary classifiers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hfdistill.functional.channel_matching import (
    channel_cost,
    margin_regression,
    negative_margin,
    reduced_channels,
)
from hfdistill.functional.matching import attended_matching, attentive_matching, layer_attention, task_oriented


def overhaul_margin(mean: Any, std: Any) -> Tensor:
    return negative_margin(*(torch.as_tensor(value, dtype=torch.float64) for value in (mean, std)))


def tofd(s: Any, t: Any, W: Any, alpha: float = 0.05, beta: float = 0.03) -> Tensor:
    if isinstance(s, Tensor) and isinstance(W, Tensor):
        return task_oriented(s, t, W, alpha, beta)
    depths = [tuple(part[None] for part in depth) for depth in zip(s, t, W, strict=True)]  # of several widths: lists
    return torch.stack([task_oriented(*depth, alpha, beta) for depth in depths]).sum()


ORACLES: dict[str, Callable[..., Any]] = {
    "afd_attention": lambda query, key, p_t, p_s: layer_attention(query, key, p_t, p_s),
    "afd_match": lambda s_maps, t_maps, att, mask=None: attended_matching(s_maps, t_maps, att, mask),
    "afds_afd": lambda s, t, rho, mask=None, eps=1e-6: attentive_matching(s, t, rho, mask, eps),
    "mgd_cost": lambda s, t, mask=None: channel_cost(s, t, mask),
    "mgd_amp": lambda t, groups: reduced_channels(t, groups.long()),
    "mgd_loss": lambda s, t, margin, mask=None: margin_regression(s, t, margin, mask),
    "overhaul_margin": overhaul_margin,
    "tofd": tofd,
}
