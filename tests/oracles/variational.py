"""Oracles of variational information."""

from collections.abc import Callable
from typing import Any

from hfdistill.functional.variational import initial_scale, variational_information

ORACLES: dict[str, Callable[..., Any]] = {
    "vid": lambda mu, t, log_scale, mask=None: variational_information(mu, t, log_scale, mask),
    "vid_init_scale": lambda init_pred_var=5.0: initial_scale(init_pred_var),
}
