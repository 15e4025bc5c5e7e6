"""Oracles of MobileBERT's transfer."""

from collections.abc import Callable
from typing import Any

from hfdistill.functional.mobilebert import attention_cross_entropy, feature_map_transfer, feature_statistics

ORACLES: dict[str, Callable[..., Any]] = {
    "mobilebert_fmt": lambda s, t, mask=None: feature_map_transfer(s, t, mask),
    "mobilebert_stats": lambda s, t, mask=None: feature_statistics(s, t, mask),
    "att_prob_ce": lambda s, t, mask=None: attention_cross_entropy(s, t, mask),
}
