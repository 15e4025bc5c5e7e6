"""Oracles of few-sample recovery."""

from collections.abc import Callable
from typing import Any

from hfdistill.functional.few_sample import pointwise_map

ORACLES: dict[str, Callable[..., Any]] = {"fskd_pointwise": lambda s, t: pointwise_map(s, t)}
