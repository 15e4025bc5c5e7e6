"""Oracles of shaped supervision."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hfdistill.functional.supervision import (
    conditional_teacher,
    cwsm_temperature,
    flsw_temperature,
    label_smoothing,
    prime_aware,
    probability_shift,
    triplet,
    unix_mask,
    unix_mix,
    unix_scores,
)


def ka_lsr(t: Tensor, y: Tensor, T: float = 1.0, eps: float = 0.1) -> Tensor:
    return (label_smoothing(t, y.long(), T, eps) / T).softmax(-1)


def mix(
    x: Tensor, s: Tensor, perm: Tensor, lam: float, k: int, b: int, w: float = 10.0, strategy: str = "entropy"
) -> tuple[Tensor, Tensor, Tensor]:
    return unix_mix(x, s, perm.long(), lam, int(k), int(b), w, strategy)


ORACLES: dict[str, Callable[..., Any]] = {
    "conditional_ts": lambda s, t, y, T=1.0, mask=None: conditional_teacher(s, t, y.long(), T, mask),
    "ka_probability_shift": lambda t, y, T=1.0: (probability_shift(t, y.long()) / T).softmax(-1),
    "ka_lsr": ka_lsr,
    "flsw_temperature": lambda s, t, tau0=4.0, beta=1.0, gamma=2.0, mask=None: flsw_temperature(
        s, t, tau0, beta, gamma, mask
    ),
    "cwsm_temperature": lambda s, tau0=4.0, beta=1.0, mask=None: cwsm_temperature(s, tau0, beta, mask),
    "unix_scores": lambda s, strategy="entropy": unix_scores(s, strategy),
    "unix_mask": lambda n, b, w=10.0: unix_mask(int(n), int(b), w),
    "unix_mix": mix,
    "triplet_kd": lambda t, sp, sn, margin=5.0, mask=None: triplet(t, sp, sn, margin, mask),
    "pad_l2": lambda s, t, logvar, mask=None: prime_aware(s, t, logvar, mask),
}
