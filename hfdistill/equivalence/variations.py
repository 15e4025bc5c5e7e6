"""What is exchanged in a trainer for the length of a run: its teacher, its models' attention, its random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from hfdistill.anatomy import Anatomy, base_model
from hfdistill.equivalence.recorded_teacher import RecordedTeacher
from hfdistill.equivalence.short_runs import NotComparableError
from hfdistill.teachers import FrozenTeacher, Teacher
from hfdistill.trainer import DistillationTrainer


class Lesson:
    """What a teacher shows in one run, for another run to learn from."""

    def __init__(self) -> None:
        self._teacher: RecordedTeacher | None = None

    @contextmanager
    def recorded(self, trainer: DistillationTrainer) -> Iterator[None]:
        """The trainer's teacher is recorded in this context."""
        if trainer.teacher is None:
            raise NotComparableError("there is no teacher.")
        self._teacher = RecordedTeacher(trainer.teacher)
        with _taught_by(trainer, self._teacher):
            yield

    @contextmanager
    def replayed(self, trainer: DistillationTrainer) -> Iterator[None]:
        """The recorded teacher is replayed in this context, in place of the trainer's own."""
        if self._teacher is None:
            raise NotComparableError("nothing was recorded.")
        self._teacher.replaying = True
        with _taught_by(trainer, self._teacher):
            yield


@contextmanager
def disturbed(trainer: DistillationTrainer) -> Iterator[None]:
    """The generators of random numbers stand elsewhere than where the seed put them, as after another beginning."""
    for draw in (random.random, np.random.rand, partial(torch.rand, 1)):
        draw()
    torch.rand(1, device=trainer.args.device)
    yield


@contextmanager
def reseeded(trainer: DistillationTrainer) -> Iterator[None]:
    """All random numbers that are drawn in this context are others."""
    trainer.args.seed += 1
    set_seed(trainer.args.seed)
    yield


@contextmanager
def attending(trainer: DistillationTrainer, kind: str) -> Iterator[None]:
    """Student and teacher compute their attention in this way in this context, as far as each has both ways.

    Args:
        trainer: whose models.
        kind: "eager" or "sdpa".

    Raises:
        NotComparableError: neither has both.
    """
    found: list[Any] = [base_model(trainer.student)]
    if isinstance(trainer.teacher, FrozenTeacher):
        found.append(base_model(trainer.teacher.model))
    models = [model for model in found if Anatomy.of(model).attention == "interface"]
    if not models:
        raise NotComparableError("neither model computes its attention in both ways.")
    before = [model.config._attn_implementation for model in models]
    try:
        for model in models:
            _set_attention(model, kind)
        yield
    finally:
        for model, own in zip(models, before, strict=True):
            model.set_attn_implementation(own)


def _set_attention(model: Any, kind: str) -> None:
    try:
        model.set_attn_implementation(kind)
    except ValueError as error:
        raise NotComparableError(f"{type(model).__name__} has no {kind} attention ({error}).") from error


@contextmanager
def _taught_by(trainer: DistillationTrainer, teacher: Teacher) -> Iterator[None]:
    own = trainer.teacher
    trainer.teacher = trainer._teaching.teacher = teacher
    try:
        yield
    finally:
        trainer.teacher = trainer._teaching.teacher = own
