"""Presets of response knowledge: what a model answers."""

from __future__ import annotations

from hfdistill.losses import SoftTargetLoss, TaskLoss
from hfdistill.objective import Objective
from hfdistill.presets.shares import check_share


def kd(temperature: float = 4.0, alpha: float = 0.9) -> Objective:
    """Soft targets: (1 - alpha) task + alpha T^2 KL.

    Hinton et al. 2015, Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531. The paper
    leaves T (1 to 20) and the weights to the task; 4 and 0.9 are the values most image codes share.

    Args:
        temperature: T > 0.
        alpha: share of the soft targets, 0 to 1.

    Raises:
        ValueError: `alpha` is no share.
    """
    check_share(alpha)
    return Objective(task=TaskLoss(weight=1.0 - alpha), kd=SoftTargetLoss(temperature, weight=alpha))
