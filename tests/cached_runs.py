"""Toy runs with a teacher that counts how often it is asked, for the tests of the teacher's cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from toy_models import toy_bert
from training_toys import logged, text_rows, trainer_of
from transformers import PreTrainedModel

from hfdistill import DistillationTrainer, FrozenTeacher, Needs, Representations

ROWS = 24
EPOCHS = 2
STEPS = 6
"""Of an epoch: rows in batches of four."""
ONCE = STEPS + 1
"""Batches that are shown to the teacher where each row is missing once; one more tells what the rows take."""


class CountingTeacher(FrozenTeacher):
    """A model that notes how many rows it is shown."""

    def __init__(self, model: PreTrainedModel | None = None, label_map: list[int] | None = None) -> None:
        super().__init__(toy_bert(layers=4, seed=1) if model is None else model, label_map)
        self.asked: list[int] = []

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        self.asked.append(len(next(iter(inputs.values()))))
        return super().represent(inputs, needs)


def cached_run(
    folder: Path, objective: Any = "kd", cache: Path | str | None = None, **changes: Any
) -> DistillationTrainer:
    """Two shuffled epochs without dropout on 24 rows of ragged text; `cache`: the teacher's.

    Args:
        folder: where the run writes.
        objective: what is learnt.
        cache: folder of the teacher's cache, or None.
        changes: see trainer_of; the teacher is a CountingTeacher where it is not given.
    """
    torch.manual_seed(3)
    given = {"teacher": CountingTeacher(), "student": toy_bert(seed=4), "rows": text_rows(ROWS)} | changes
    plan = {"max_steps": -1, "num_train_epochs": EPOCHS, "learning_rate": 0.05}
    where = {} if cache is None else {"teacher_cache": str(cache)}
    return trainer_of(folder, objective, **(plan | where | given))


def curve(trainer: DistillationTrainer) -> list[dict[str, float]]:
    """The loss and the terms of each step."""
    return [{name: value for name, value in line.items() if name.startswith("loss")} for line in logged(trainer)]


def apart(one: DistillationTrainer, other: DistillationTrainer) -> float:
    """The largest difference of two loss curves of the same steps and terms."""
    ours, theirs = curve(one), curve(other)
    if [line.keys() for line in ours] != [line.keys() for line in theirs]:
        raise ValueError("the two runs did not log the same steps and terms")
    return max(abs(line[name] - other[name]) for line, other in zip(ours, theirs, strict=True) for name in line)


def asked(trainer: DistillationTrainer) -> int:
    """How many batches the teacher was shown."""
    return len(trainer.teacher.asked) if isinstance(trainer.teacher, CountingTeacher) else 0
