"""Oracles of response knowledge."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hfdistill import functional as F

IGNORED_LABEL = -100


def valid_labels(labels: Tensor | None) -> Tensor | None:
    return None if labels is None else labels != IGNORED_LABEL


def hinton_total(s: Tensor, t: Tensor, y: Tensor, T: float = 4.0, alpha: float = 0.9) -> Tensor:
    task = torch.nn.functional.cross_entropy(s, y.long(), ignore_index=IGNORED_LABEL)
    return (1 - alpha) * task + alpha * F.soft_target_kl(s, t, T, valid_labels(y))


ORACLES: dict[str, Callable[..., Any]] = {
    "kd_kl": lambda s, t, T=1.0, mask=None: F.soft_target_kl(s, t, T, mask),
    "soft_ce": lambda s, t, T=1.0, mask=None: F.soft_target_cross_entropy(s, t, T, mask),
    "soft_ce_elementmean": lambda s, t, T=1.0, mask=None: F.soft_target_cross_entropy(s, t, T, mask, "elementmean"),
    "hinton_total": hinton_total,
    "logit_mse": lambda s, t, T=1.0, mask=None: F.logit_mse(s, t, T, mask),
    "forward_kl": lambda s, t, labels=None, T=1.0: F.soft_target_kl(
        s, t, T, valid_labels(labels), scale_by_temperature=False
    ),
    "forward_ce": lambda s, t, labels=None, T=1.0: F.soft_target_cross_entropy(s, t, T, valid_labels(labels)),
    "reverse_kl": lambda s, t, labels=None, T=1.0: F.reverse_kl(s, t, T, valid_labels(labels)),
    "total_variation": lambda s, t, labels=None, T=1.0: F.total_variation(s, t, T, valid_labels(labels)),
}
