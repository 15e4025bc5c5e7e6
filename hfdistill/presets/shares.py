"""Shares of an objective, checked."""

from __future__ import annotations


def check_share(alpha: float) -> None:
    """Raise ValueError unless alpha is between 0 and 1, as a share of the soft targets must be."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(
            f"alpha must be a share between 0 and 1, got {alpha}: the labels get 1 - alpha, which must not be below 0."
        )
