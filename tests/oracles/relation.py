"""Oracles of relations between the samples of a batch."""

from collections.abc import Callable
from typing import Any

from hfdistill import functional as F

ORACLES: dict[str, Callable[..., Any]] = {
    "sp": lambda s, t: F.similarity_preserving(s, t),
}
