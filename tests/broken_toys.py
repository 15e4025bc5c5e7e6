"""What breaks on purpose, for the tests of faults: losses, students and data sets."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from training_toys import image_rows

from hfdistill import DistillationLoss
from hfdistill.representations import Batch, Needs, Representations

STEPS = 4
"""Steps of a run in which `at` counts them."""

MARK = 77.0
"""A pixel that breaks a student."""


class FaultyLoss(DistillationLoss):
    """The mean of the student's logits squared; broken in one step of a run of STEPS.

    Args:
        at: the step.
        way: what breaks then: "nan" and "inf" the value and its gradient, "gradient" that alone, "value" that alone.
        process: break on this process alone; None: on all.
    """

    def __init__(self, at: int = 1, way: str = "nan", process: int | None = None) -> None:
        super().__init__(weight=1.0)
        self.at, self.way, self.process = at, way, process

    def needs(self) -> tuple[Needs, Needs]:
        """The student's logits."""
        return Needs(logits=True), Needs()

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """As above."""
        logits = student.logits
        assert logits is not None
        value = logits.square().mean()
        here = self.process is None or torch.distributed.get_rank() == self.process
        if round(batch.progress * STEPS) != self.at or not here:
            return value
        if self.way == "gradient":
            return value + (0 * logits.sum()).sqrt()  # the slope of a root at 0 is infinite
        return value + torch.inf if self.way == "value" else value * float(self.way)


def marked_images(count: int, marked: tuple[int, ...]) -> Dataset:
    """Images of which those of these numbers break a `breaking` student."""
    rows = image_rows(count).to_list()
    for number in marked:
        rows[number]["pixel_values"][0][0][0] = MARK
    return Dataset.from_list(rows)


def breaking(student: nn.Module) -> nn.Module:
    """The student, which takes marked images for NaN."""

    def read(_: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        pixels = inputs["pixel_values"]
        return args, inputs | {"pixel_values": pixels.masked_fill(pixels == MARK, torch.nan)}

    student.register_forward_pre_hook(read, with_kwargs=True)
    return student


def moments(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """What an optimizer keeps of each parameter, by name, as copies."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    named = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{named[parameter]}.{key}": value.clone()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor) and parameter in named
    }
