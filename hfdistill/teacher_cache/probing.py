"""A few rows of a training set looked at before training: whether they stay what they are, and what to keep takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from hfdistill.representations import ROW_KEYS
from hfdistill.teacher_cache.cache import TeacherCache
from hfdistill.teacher_cache.collator import UnknownRowsError
from hfdistill.teacher_cache.keys import row_keys
from hfdistill.teacher_cache.store import check_space

logger = logging.getLogger(__name__)

ROWS = 16
"""Rows that are looked at, from all over the training set."""
DRAWS = 3
"""How often they are made into a batch; what is drawn at random for a row then differs with near certainty."""


def probe(
    cache: TeacherCache,
    loader: DataLoader[Any],
    ask: Callable[[Mapping[str, Any]], object],
    begin_epoch: Callable[[int], None],
    process: tuple[int, int] = (0, 1),
) -> None:
    """Refuse rows that change from epoch to epoch, and a cache that the disk has no room for; before anything is kept.

    Streams are not looked at: what is taken of one may be gone.

    Args:
        cache: of the run; it is told how much is still to be written.
        loader: of the training set.
        ask: shows a batch to the teacher, and keeps what it shows.
        begin_epoch: lets the loader draw the random numbers of an epoch.
        process: number of this process, and how many there are: each looks at rows of its own.

    Raises:
        UnknownRowsError: rows are other ones in another epoch.
        OSError: there is not enough room.
    """
    dataset: Any = loader.dataset
    if cache.asks is None or isinstance(dataset, IterableDataset):
        return
    count = min(ROWS, len(dataset))
    numbers = [at * len(dataset) // count for at in range(count)][process[0] :: process[1]]
    if not numbers:
        return
    batches = []
    for epoch in range(DRAWS):
        begin_epoch(epoch)
        rows = dataset.__getitems__(numbers) if "__getitems__" in dir(dataset) else [dataset[at] for at in numbers]
        batches.append(loader.collate_fn(rows))
    begin_epoch(0)
    _check_steady(batches, cache.teacher.input_names)
    _check_size(cache, batches[0], len(dataset), ask)


def _check_steady(batches: list[Any], names: tuple[str, ...]) -> None:
    drawn = [row_keys(batch, names) for batch in batches]
    changing = sum(len(set(keys)) > 1 for keys in zip(*drawn, strict=True))
    if changing:
        raise UnknownRowsError(
            f"{changing} of {len(drawn[0])} training rows are others each time that they are made into a batch: "
            "tokens are masked, or images augmented, at random. What a teacher showed of a row could never be used "
            "again. Switch that off (ImageCollator(augmentation='none')), draw it once for all (dataset.map), or "
            "learn from a live teacher, without teacher_cache."
        )


def _check_size(cache: TeacherCache, batch: Mapping[str, Any], rows: int, ask: Callable[..., object]) -> None:
    keys = row_keys(batch, cache.teacher.input_names)
    missing = len(cache.store.missing(keys)) / len(keys)
    if ROW_KEYS not in batch or not missing:
        return
    bytes_before, rows_before = cache.kept_bytes, cache.kept_rows
    ask(batch)
    each = (cache.kept_bytes - bytes_before) / max(cache.kept_rows - rows_before, 1)
    cache.expected_bytes = round(each * missing * rows)
    folder = cache.store.folder
    logger.info("what the teacher shows of %d rows takes %.1f MB in %s", rows, cache.expected_bytes / 1e6, folder)
    check_space(folder, cache.expected_bytes)
