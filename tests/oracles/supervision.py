"""Oracles of shaped supervision."""

from collections.abc import Callable
from typing import Any

from hfdistill import functional as F

ORACLES: dict[str, Callable[..., Any]] = {
    "triplet_kd": lambda t, sp, sn, margin=5.0: F.triplet(t, sp, sn, margin),
}
