"""Oracles of learned transfer."""

from collections.abc import Callable
from typing import Any

from hfdistill.functional.learned_transfer import weighted_feature_match

ORACLES: dict[str, Callable[..., Any]] = {
    "l2t_ww_pair": lambda s, t, cw, pw, beta=0.5: beta * weighted_feature_match(s, t, cw, pw)
}
