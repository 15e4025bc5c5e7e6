"""Oracles of contextual knowledge."""

from collections.abc import Callable
from typing import Any

from hfdistill.functional.context import relation_angle, relative_distance_mse

ORACLES: dict[str, Callable[..., Any]] = {
    "ckd_wr_pair_l2": lambda s, t, mask=None: relative_distance_mse(s, t, mask),
    "ckd_wr_angle": lambda s, t, mask=None: relation_angle(s, t, mask),
}
