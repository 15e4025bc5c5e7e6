"""The rows of hfdistill: the trainer's own training step, fed by its own data loader.

A step here is what `train()` does for each batch: take it from the data loader, `training_step`, the optimizer's step.
Clipping is off, as it is in the other rows, and the optimizer is the same.
"""

from collections.abc import Callable
from contextlib import ExitStack
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, Trainer

from benchmarks.bare import RATE
from benchmarks.models import Models, Padding
from hfdistill import (
    DistillationTrainer,
    DistillationTrainingArguments,
    HiddenStateLoss,
    Objective,
    SoftTargetLoss,
    fill_cache,
)
from hfdistill import preset as published

MODES = {
    "live": "float32 teacher",
    "bf16": "bfloat16 teacher",
    "cached": "second epoch, from the teacher cache",
    "autocast": "bfloat16 teacher, student under bfloat16 autocast",
}
"""How a row asks its teacher -> what that means."""


def hidden() -> Objective:
    """Soft targets and the hidden states of the embeddings and of every student layer, a projection for each."""
    return Objective(kd=SoftTargetLoss(), hidden=HiddenStateLoss("uniform"))


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "hidden": hidden,
    **{name: (lambda name=name: published(name)) for name in ("kd", "pkd", "tinybert", "minilm", "sp")},
}
"""Name of an objective -> what builds it. Presets that switch are at their start, in the phase that costs most."""


def arguments(device: torch.device, batch: int, folder: Path, **options: Any) -> DistillationTrainingArguments:
    """Arguments under which nothing happens beside the training itself.

    Args:
        device: where it runs.
        batch: rows of a batch.
        folder: for what would be written.
        options: what a row asks for itself.
    """
    return DistillationTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        dataloader_drop_last=True,
        use_cpu=device.type == "cpu",
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        **options,
    )


def steps_of(trainer: Trainer) -> Callable[[], None]:
    """One training step after another, as `train()` makes them.

    Args:
        trainer: with its data; nothing else may use it any more.
    """
    whole = ExitStack()  # of what train() enters once; it must outlive the steps
    if isinstance(trainer, DistillationTrainer):
        trainer.placement.place(trainer.teacher)
        whole.enter_context(trainer.caching())
        whole.enter_context(trainer._attached())
    trainer.create_optimizer()
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    data = chain.from_iterable(repeat(trainer.get_train_dataloader()))

    def step(_entered: ExitStack = whole) -> None:
        samples, items = trainer.get_batch_samples(data, 1, trainer.args.device)
        trainer.current_gradient_accumulation_steps = len(samples)
        trainer.training_step(model, samples[0], items)
        optimizer.step()
        model.zero_grad()

    return step


class Trained:
    """Makes the rows of hfdistill over one data set.

    Args:
        models: of the run.
        rows: the data set.
        batch: rows of a batch.
        folder: for caches, and whatever else is written.
        padding: the data collator.
        options: training arguments of every row, such as the sampling strategy.
    """

    def __init__(
        self, models: Models, rows: Dataset, batch: int, folder: Path, padding: Padding | None = None, **options: Any
    ) -> None:
        self.models = models
        self.given = {"train_dataset": rows, "data_collator": padding or Padding()}
        self.batch = batch
        self.folder = folder
        self.options = options

    def trainer(self, objective: Objective, mode: str) -> DistillationTrainer:
        """The trainer of a row; "cached" needs `fill` first.

        Args:
            objective: a fresh one.
            mode: one of MODES.
        """
        teacher = self.models.teacher if mode == "live" else self.models.half_teacher
        options = dict(self.options)
        if mode == "cached":
            options["teacher_cache"] = str(self.place(objective))
        if mode == "autocast":
            options["bf16"] = True
        args = arguments(self.models.device, self.batch, self.folder, **options)
        student = self.models.student()
        trainer = DistillationTrainer(student, args, teacher=teacher, objective=objective, **self.given)
        trainer.remove_callback(PrinterCallback)
        return trainer

    def place(self, objective: Objective) -> Path:
        """The folder of an objective's cache."""
        return self.folder / "-".join(["cache", *objective.losses])

    def fill(self, objective: Objective) -> None:
        """Write the teacher cache of these rows.

        Args:
            objective: whose needs are kept.
        """
        fill_cache(self.trainer(objective, "cached"))

    def step(self, name: str, mode: str) -> Callable[[], None]:
        """The training steps of a row.

        Args:
            name: of an objective, see OBJECTIVES.
            mode: see MODES.
        """
        if mode == "cached":
            self.fill(OBJECTIVES[name]())
        return steps_of(self.trainer(OBJECTIVES[name](), mode))

    def alone(self) -> Callable[[], None]:
        """The steps of the stock Trainer, which trains the student on its labels."""
        args = arguments(self.models.device, self.batch, self.folder, **self.options)
        return steps_of(Trainer(self.models.student(), args, **self.given))
