"""How much each micro-batch counts, so that an update is the mean over all of its valid items.

An update goes over several micro-batches (gradient accumulation) and processes, which hold different numbers of valid
items; a mean of their means would count a token of a short batch more than one of a long one.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor

from hfdistill.objective import Objective
from hfdistill.representations import Batch


class ItemCounts:
    """Valid items of each loss in the update at hand.

    Args:
        accelerator: whose processes make the update together.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.micro_steps = 1
        self._totals: Tensor | None = None

    def begin(self, objective: Objective, batches: Iterable[Batch], device: torch.device) -> None:
        """Count the micro-batches of the next update, over all processes."""
        held = list(batches)
        self.micro_steps = len(held)
        self._totals = self.accelerator.reduce(objective.counts(held).to(device), reduction="sum")

    def scales(self, objective: Objective, batch: Batch) -> Tensor | None:
        """(number of losses,), what each loss of this micro-batch is multiplied with; None outside an update."""
        if self._totals is None:
            return None
        counts = objective.counts([batch]).to(self._totals)
        scales: Tensor = counts * self.micro_steps * self.accelerator.num_processes / self._totals.clamp(min=1.0)
        return scales
