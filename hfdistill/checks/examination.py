"""A trainer on the couch: a few of its batches, both models and a copy of its objective, and everything put back."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from hfdistill.anatomy import Anatomy
from hfdistill.attachment import given_task_loss, task_loss_of
from hfdistill.capture import capture
from hfdistill.objective import Objective
from hfdistill.representations import Batch, Needs, Representations
from hfdistill.teachers import FrozenTeacher, Teacher
from hfdistill.teaching import Teaching
from hfdistill.trainer import DistillationTrainer

TERM_BATCHES = 2
"""Batches on which gradients are taken, of those that are looked at."""


@dataclass(frozen=True)
class Examination:
    """What the checks look at.

    Args:
        trainer: not started.
        batches: as the trainer makes them, on its device.
        split: which data they are of, in a word.
        objective: a copy of the trainer's, bound, on the device: memory banks and moving averages may change.
        teaching: asks the teacher, as the trainer does.
    """

    trainer: DistillationTrainer
    batches: list[dict[str, Any]]
    split: str
    objective: Objective
    teaching: Teaching

    @classmethod
    def of(cls, trainer: DistillationTrainer, rows: int) -> Examination:
        """Make batches of `rows` rows or a little more, and get the teacher ready."""
        batches, split = _batches(trainer, rows)
        trainer.placement.place(trainer.teacher)
        objective = copy.deepcopy(trainer.objective).to(trainer.args.device)
        return cls(trainer, batches, split, objective, Teaching(trainer.teacher, trainer._teaching.conversion))

    @property
    def student(self) -> nn.Module:
        """The student itself."""
        return self.trainer.student

    @property
    def anatomy(self) -> Anatomy:
        """The student's anatomy."""
        return self.trainer.student_anatomy

    @property
    def teacher(self) -> Teacher | None:
        """The teacher, if there is one."""
        return self.trainer.teacher

    @property
    def teacher_model(self) -> nn.Module | None:
        """The teacher's model, where it is known to have one."""
        return self.teacher.model if isinstance(self.teacher, FrozenTeacher) else None

    def batch(self, inputs: Mapping[str, Any]) -> Batch:
        """What a loss may look at, at the start of training."""
        return self.trainer._inputs.batch(inputs, 0.0)

    def given(self, inputs: Mapping[str, Any], labels: bool = True) -> dict[str, Any]:
        """What the student's forward takes of a batch."""
        return self.trainer._inputs.of_student(inputs, labels)

    def taught(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        """What the teacher shows of a batch.

        Raises:
            ValueError: it shows NaN or inf.
        """
        with self.trainer.accelerator.autocast():
            shown = self.teaching.show(inputs, needs)
        self.teaching.watch.check(shown)
        return shown

    def values(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Every term of the objective on one batch, unweighted, with its gradient: a training pass of the student."""
        batch, (ours, theirs) = self.batch(inputs), self.objective.needs(0.0)
        taught = self.taught(inputs, theirs)
        self.student.train()
        with self.trainer.accelerator.autocast():
            output, shown = capture(self.student, self.given(inputs), ours)
            function = task_loss_of(self.trainer.compute_loss_func)
            shown.loss = given_task_loss(output, batch.labels, function, self.anatomy)
            return self.objective.values(shown, taught, batch)

    @torch.no_grad()
    def answered(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """The student's logits on one batch, in evaluation mode; None where its head gives none."""
        self.student.eval()
        with self.trainer.accelerator.autocast():
            return capture(self.student, self.given(inputs, labels=False), Needs(logits=True))[1].logits


@contextmanager
def undisturbed(trainer: DistillationTrainer) -> Iterator[None]:
    """Put back what an examination changes: random states, modes and buffers of the models, the accelerator's loaders.

    Gradients are never accumulated, and the objective is a copy.
    """
    models = [trainer.student]
    if isinstance(trainer.teacher, FrozenTeacher):
        models.append(trainer.teacher.model)
    modes = [(part, part.training) for model in models for part in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for model in models for buffer in model.buffers()]
    loaders = list(trainer.accelerator._dataloaders)
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with _forked_rng():
            torch.manual_seed(trainer.args.seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        trainer.accelerator._dataloaders[:] = loaders
        for part, training in modes:
            part.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _forked_rng() -> Any:
    """A context that gives back torch's random states, of the processor and of the device in use."""
    device = torch.accelerator.current_accelerator()
    if device is None:
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[torch.accelerator.current_device_index()], device_type=device.type)


def _batches(trainer: DistillationTrainer, rows: int) -> tuple[list[dict[str, Any]], str]:
    """Batches of the training set where these have labels, or there is no other; else of the evaluation set."""
    candidates = []
    if trainer.train_dataset is not None:
        candidates.append(("training", trainer.get_train_dataloader))
    if trainer.eval_dataset is not None:
        candidates.append(("evaluation", trainer.get_eval_dataloader))
    found: list[tuple[list[dict[str, Any]], str]] = []
    for split, loader in candidates:
        batches = list(_first(trainer, loader(), rows))
        found.append((batches, split))
        if batches and trainer._inputs.label_name in batches[0]:
            return found[-1]
    return found[0]


def _first(trainer: DistillationTrainer, loader: Any, rows: int) -> Iterator[dict[str, Any]]:
    seen = 0
    for inputs in _unprepared(loader):
        prepared: dict[str, Any] = trainer._prepare_inputs(inputs)
        seen += Batch.of(prepared).size
        yield prepared
        if seen >= rows:
            return


def _unprepared(loader: Any) -> Iterable[Any]:
    """The same batches from a plain loader without workers: accelerate's, left early, stays marked as in use."""
    if not isinstance(loader, DataLoader):
        batches: Iterable[Any] = loader
        return batches
    if isinstance(loader.dataset, IterableDataset):
        return DataLoader(loader.dataset, batch_size=loader.batch_size, collate_fn=loader.collate_fn)
    return DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn)
