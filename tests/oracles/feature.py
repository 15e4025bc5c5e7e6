"""Oracles of feature knowledge."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hfdistill import functional as F


def hint_mse(s: Tensor, t: Tensor, mask: Tensor | None = None, W: Tensor | None = None, b: Any = None) -> Tensor:
    return F.hidden_mse(s if W is None else torch.nn.functional.linear(s, W, b), t, mask)


ORACLES: dict[str, Callable[..., Any]] = {
    "hint_mse": hint_mse,
    "hidden_cos": lambda s, t, mask=None: F.hidden_cosine(s, t, mask),
    "pkd": lambda s, t, normalise=True: F.patience(s, t, normalise),
    "pkd_paper": lambda s, t, normalise=True: F.patience(s, t, normalise, "paper"),
    "fsp": lambda s1, s2, t1, t2, mask=None: F.flow_of_solution(s1, s2, t1, t2, mask),
}
