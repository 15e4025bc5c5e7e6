"""Oracles of kernel alignment."""

from collections.abc import Callable
from typing import Any

from hfdistill.functional.kernels import linear_cka, linear_cka_debiased

ORACLES: dict[str, Callable[..., Any]] = {
    "linear_cka": lambda s, t, centre=True, mask=None: linear_cka(s, t, mask, centre),
    "linear_cka_debiased": lambda s, t, mask=None: linear_cka_debiased(s, t, mask),
}
