"""Means of the objective's terms between two log lines, kept on the device so that no step waits for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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

    def sums(self) -> dict[str, Tensor]:
        """What is summed up to now, for a checkpoint: scalars as `total/<name>` and `weight/<name>`."""
        held = {f"total/{name}": value for name, value in self._totals.items()}
        return held | {f"weight/{name}": torch.as_tensor(value) for name, value in self._weights.items()}

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        """Go on from sums of another run, in place of those at hand."""
        parts: dict[str, dict[str, Any]] = {"total": {}, "weight": {}}
        for key, value in sums.items():
            kind, name = key.split("/", 1)
            parts[kind][name] = value
        self._totals, self._weights = parts["total"], parts["weight"]

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
