"""Oracles of class knowledge: decoupled, correlated, standardised and hard targets."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hfdistill.functional.classes import (
    class_correlation,
    decoupled_kl,
    decoupled_parts,
    hard_label_cross_entropy,
    standardized_kl,
)
from hfdistill.functional.response import soft_target_kl
from oracles.response import IGNORED_LABEL, valid_labels


def deit_total(
    s_cls: Tensor, s_dist: Tensor, t: Tensor, y: Tensor, mode: str = "hard", alpha: float = 0.5, tau: float = 1.0
) -> Tensor:
    mask = valid_labels(y)
    task = torch.nn.functional.cross_entropy(s_cls, y.long(), ignore_index=IGNORED_LABEL, reduction="sum")
    task = task / (y != IGNORED_LABEL).sum().clamp(min=1)
    if mode == "hard":
        return (1 - alpha) * task + alpha * hard_label_cross_entropy(s_dist, t, mask)
    return (1 - alpha) * task + alpha * soft_target_kl(s_dist, t, tau, mask, reduction="elementmean")


ORACLES: dict[str, Callable[..., Any]] = {
    "deit_total": deit_total,
    "dkd": lambda s, t, y, alpha=1.0, beta=8.0, T=4.0, mask=None: decoupled_kl(s, t, y.long(), T, alpha, beta, mask),
    "dkd_parts": lambda s, t, y, T=4.0, mask=None: decoupled_parts(s, t, y.long(), T, mask),
    "dist_loss": lambda s, t, beta=1.0, gamma=1.0, tau=1.0, mask=None: class_correlation(s, t, tau, beta, gamma, mask),
    "logit_std_kd": lambda s, t, T=2.0, mask=None: standardized_kl(s, t, T, mask),
}
