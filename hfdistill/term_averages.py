"""Means of the objective's terms between two log lines, kept on the device so that no step waits for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class TermAverages:
    """Running means of named scalars.

    Args:
        reduce: averages a tensor over all processes.
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor]) -> None:
        self._reduce = reduce
        self._totals: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor | float] = {}

    def add(self, terms: Mapping[str, Tensor], weights: Mapping[str, Tensor | float] | None = None) -> None:
        """Take in one batch.

        Args:
            terms: name -> detached scalar.
            weights: name -> how much this batch counts; 1 where absent.
        """
        for name, value in terms.items():
            weight = 1.0 if weights is None else weights[name]
            self._totals[name] = self._totals.get(name, 0.0) + value * weight
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def pop(self, prefix: str) -> dict[str, float]:
        """The means since the last call, as `prefix + name`; this is where the host waits for the device."""
        names = sorted(self._totals)
        if not names:
            return {}
        totals = torch.stack([self._totals[name].float() for name in names])
        weights = torch.stack([torch.as_tensor(self._weights[name]).to(totals) for name in names])
        self._totals.clear()
        self._weights.clear()
        totals, weights = self._reduce(torch.stack([totals, weights])).unbind()
        means = (totals / weights.clamp(min=torch.finfo(weights.dtype).tiny)).tolist()
        return {prefix + name: mean for name, mean in zip(names, means, strict=True)}
