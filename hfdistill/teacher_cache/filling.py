"""A teacher's cache filled ahead, in one pass over the training set: then no run has to wait for the teacher."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sized
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from tqdm.auto import tqdm

from hfdistill.representations import ROW_KEYS, Batch
from hfdistill.teacher_cache.cache import TeacherCache
from hfdistill.trainer import DistillationTrainer


@dataclass(frozen=True)
class Filled:
    """What filling a cache came to, over all processes.

    Args:
        rows: that were shown to the teacher.
        bytes: that these take.
        seconds: that it took.
        skipped: rows that were there already, from another run or one that was broken off.
        folder: where they lie.
    """

    rows: int
    bytes: int
    seconds: float
    skipped: int
    folder: str

    def __str__(self) -> str:
        return (
            f"{self.rows} rows kept, {self.bytes / 1e6:.1f} MB in {self.seconds:.0f} s; {self.skipped} were there "
            f"already: {self.folder}"
        )


def fill_cache(trainer: DistillationTrainer, also: Iterable[DistillationTrainer] = ()) -> Filled:
    """Show every training row to the teacher once, and keep what the objective is to learn from it.

    The longest rows come first, grouped by length. What is there already is skipped, so a filling that was broken off
    goes on; of several processes each fills its share. How much room it takes is found out from a few rows first.

    Args:
        trainer: with `teacher_cache`, not started.
        also: further trainers of the same teacher and rows, whose objectives learn from it too.

    Raises:
        ValueError: a trainer without a cache, or of another teacher; a stream; rows that are made at random.
        OSError: there is not enough room, or the folder cannot be written; what was kept until then stays.
    """
    cache, dataset = _widened(trainer, also), trainer.train_dataset
    if not isinstance(dataset, Sized) or isinstance(dataset, datasets.IterableDataset):
        raise ValueError(
            f"a cache is filled ahead from a training set of known length, got {type(dataset).__name__}. Leave this "
            "out: a stream's rows are kept as training meets them."
        )
    began, own, loaders = time.perf_counter(), trainer._teaching.cache, list(trainer.accelerator._dataloaders)
    trainer._teaching.cache = cache
    try:
        with trainer.caching():
            trainer.placement.place(trainer.teacher)
            loader, seen = _loader(trainer), 0
            for inputs in tqdm(loader, desc="teacher", unit="batch", disable=_is_quiet(trainer)):
                seen += Batch.of(inputs).size
                if ROW_KEYS in inputs:
                    trainer.ask_teacher(inputs)
    finally:
        trainer._teaching.cache = own
        trainer.accelerator._dataloaders[:] = loaders
    counts = torch.tensor(
        [cache.kept_rows, cache.kept_bytes, max(seen - cache.kept_rows, 0)], device=trainer.args.device
    )
    rows, size, skipped = (int(count) for count in trainer.accelerator.reduce(counts))
    return Filled(rows, size, time.perf_counter() - began, skipped, str(cache.store.folder))


def expected_bytes(trainer: DistillationTrainer, also: Iterable[DistillationTrainer] = ()) -> int:
    """Bytes that filling a cache will write, about; a few rows are shown to the teacher and kept to find out.

    Args:
        trainer: see fill_cache.
        also: see fill_cache.

    Raises:
        ValueError, OSError: see fill_cache.
    """
    cache, own, loaders = _widened(trainer, also), trainer._teaching.cache, list(trainer.accelerator._dataloaders)
    trainer._teaching.cache = cache
    try:
        with trainer.caching():
            trainer.placement.place(trainer.teacher)
            _loader(trainer)
    finally:
        trainer._teaching.cache = own
        trainer.accelerator._dataloaders[:] = loaders
    return cache.expected_bytes


def _widened(trainer: DistillationTrainer, also: Iterable[DistillationTrainer]) -> TeacherCache:
    """The cache of all these trainers together."""
    caches = [one._teaching.cache for one in (trainer, *also)]
    known = [cache for cache in caches if cache is not None and cache.asks is not None]
    if len(known) < len(caches):
        raise ValueError(
            "there is nothing to fill: a trainer has no teacher_cache, no teacher to be asked, or an objective that "
            "learns nothing from one. Set teacher_cache='folder' in its DistillationTrainingArguments."
        )
    return known[0].widened(known[1:])


def _loader(trainer: DistillationTrainer) -> Any:
    """Every training row once, the longest first; making it looks at a few rows (see probe)."""
    args, dropped = trainer.args, trainer.args.dataloader_drop_last
    args.dataloader_drop_last = False
    try:
        return trainer._get_dataloader(
            trainer.train_dataset,
            description="Filling",
            batch_size=max(args.train_batch_size, args.eval_batch_size),
            sampler_fn=lambda rows: _longest_first(rows, args.length_column_name),
            is_training=True,
        )
    finally:
        args.dataloader_drop_last = dropped


def _longest_first(rows: Any, column: str) -> list[int]:
    lengths = [0] * len(rows)
    if isinstance(rows, datasets.Dataset) and column in rows.column_names:
        lengths = list(rows[column])
    elif isinstance(rows, datasets.Dataset) and "input_ids" in rows.column_names:
        lengths = [len(ids) for ids in rows.with_format(None)["input_ids"]]
    return sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)


def _is_quiet(trainer: DistillationTrainer) -> bool:
    return bool(trainer.args.disable_tqdm) or not trainer.is_local_process_zero()
