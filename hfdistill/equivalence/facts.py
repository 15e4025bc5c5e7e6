"""What of a trainer decides how its runs can be compared."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass

import torch

from hfdistill.equivalence.relations import gathering, relating, remembering
from hfdistill.equivalence.short_runs import NotComparableError
from hfdistill.trainer import DistillationTrainer

TOLERANCES = {"float64": 1e-6, "float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}
"""Precision of the student's forward pass -> how far apart runs may end, relative to the largest update: rounding in
another order makes this difference. The shares of micro-batches are float32 whatever the model is."""


@dataclass(frozen=True)
class Facts:
    """What of a trainer decides how its runs can be compared.

    Args:
        rows: per device and micro-batch, as the user trains.
        available: rows of the training set; None for a stream.
        precision: of the student's forward pass.
        device: kind of device.
        teacher: whether there is one.
        relating: terms whose value is no mean over rows.
        gathering: terms that see the rows of all processes.
        remembering: terms that depend on earlier micro-batches.
        fewest: rows that a micro-batch must have.
    """

    rows: int
    available: int | None
    precision: str
    device: str
    teacher: bool
    relating: frozenset[str]
    gathering: frozenset[str]
    remembering: frozenset[str]
    fewest: int

    @classmethod
    def of(cls, trainer: DistillationTrainer) -> Facts:
        """Read the facts.

        Raises:
            ValueError: it is one of several processes already.
        """
        args, objective = trainer.args, trainer.objective
        if args.world_size > 1:
            raise ValueError(
                f"this is one of {args.world_size} processes, but one and several are to be compared here. Start the "
                "program by itself, without torchrun or accelerate launch; it starts the others."
            )
        kinds = (parameter.dtype for parameter in trainer.student.parameters() if parameter.is_floating_point())
        precision = "bfloat16" if args.bf16 else "float16" if args.fp16 else str(next(kinds)).removeprefix("torch.")
        data = trainer.train_dataset
        return cls(
            rows=args.per_device_train_batch_size,
            available=len(data) if isinstance(data, Sized) else None,
            precision=precision,
            device=torch.device(args.device).type,
            teacher=trainer.teacher is not None,
            relating=relating(objective),
            gathering=gathering(objective),
            remembering=remembering(objective),
            fewest=max(objective[name].fewest_rows for name in objective),
        )

    @property
    def tolerance(self) -> float:
        """How far apart runs may end; see TOLERANCES."""
        return TOLERANCES.get(self.precision, max(TOLERANCES.values()))

    def batch(self, steps: int, parts: int) -> int:
        """Rows of a global batch that can be cut into `parts`: the user's own batch if there are rows for `steps`.

        Raises:
            NotComparableError: there are too few rows.
        """
        least = parts * self.fewest
        wanted = max(self.rows - self.rows % parts, least)
        if self.available is not None and self.available < steps * wanted:
            wanted = self.available // steps // parts * parts
        if wanted < least:
            raise NotComparableError(
                f"{steps} steps of {least} rows need {steps * least} rows of training data, there are "
                f"{self.available}. Give more rows, or compare fewer steps."
            )
        return wanted
