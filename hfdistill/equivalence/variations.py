"""What is exchanged in a trainer for the length of a run: its teacher, its models' attention, its random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from hfdistill.anatomy import Anatomy, base_model
from hfdistill.equivalence.short_runs import NotComparableError
from hfdistill.teacher_cache.cache import TeacherCache
from hfdistill.teacher_cache.collator import UnknownRowsError
from hfdistill.teacher_cache.entries import Entries
from hfdistill.teacher_cache.store import Layout, Store
from hfdistill.teachers import FrozenTeacher
from hfdistill.trainer import DistillationTrainer


class Lesson:
    """What a teacher shows in one run, kept in a cache on disk for another run to learn from.

    Args:
        folder: of the cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def recorded(self, trainer: DistillationTrainer) -> Iterator[None]:
        """What the trainer's teacher shows is kept in this context."""
        with self._kept(trainer, asks=True):
            yield

    @contextmanager
    def replayed(self, trainer: DistillationTrainer) -> Iterator[None]:
        """The trainer learns from what was kept in this context, and its teacher cannot be asked."""
        with self._kept(trainer, asks=False):
            yield

    @contextmanager
    def _kept(self, trainer: DistillationTrainer, asks: bool) -> Iterator[None]:
        objective, teacher = trainer.objective, trainer.teacher
        if teacher is None or not objective.needs()[1]:
            raise NotComparableError("there is no teacher, or nothing is learnt from it.")
        if teacher.anatomy.encoder_decoder:
            raise NotComparableError(f"what {teacher.anatomy.family} shows of two kinds of tokens cannot be cached.")
        try:
            entries = Entries(objective.cached_needs(), teacher.anatomy)
        except ValueError as error:
            raise NotComparableError(str(error)) from error
        store = Store.open(self.folder, "0" * 64, Layout(entries.kinds))
        needs = objective.needs()[1] if asks else None
        trainer._teaching.cache = TeacherCache(store, [entries], needs, trainer._inputs.label_name)
        try:
            yield
        except UnknownRowsError as error:
            raise NotComparableError(
                "rows are not those of an earlier pass: the batches are made at random (masking, augmentation), or "
                "padded without an attention_mask that says so. What a teacher showed of a row cannot be used again "
                f"({error})."
            ) from error
        finally:
            trainer._teaching.cache = None


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
