"""A teacher without a model: what another showed of each row, read from its cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.representations import Needs, Representations
from hfdistill.teacher_cache.collator import UnknownRowsError, missing_rows, read_rows, real_tokens
from hfdistill.teacher_cache.entries import Entries
from hfdistill.teacher_cache.keys import row_keys
from hfdistill.teacher_cache.store import Layout, Store, stored_teachers
from hfdistill.teacher_precision import CachePrecision
from hfdistill.teacher_tokens import own_inputs
from hfdistill.vision_stages import VisionStages, Window


class CachedTeacher:
    """Teaches what a teacher's cache holds; the teacher's weights are not needed, nor its memory.

    ::

        DistillationTrainer(model=student, teacher=CachedTeacher("cache"), objective="pkd", ...)

    Every row must be there, with all that the objective needs (see fill_cache). Batches are read ahead by the data
    loader, in its workers where it has any.

    Args:
        folder: of a cache, as `teacher_cache` names it.
        key: which teacher, where the cache holds several: a folder's name in it.
        dtype: how precisely it was kept, as `teacher_cache_dtype`.

    Attributes:
        anatomy: of the teacher that filled it.

    Raises:
        ValueError: no cache, an empty one, or one of several teachers and no key.
    """

    def __init__(self, folder: str | Path, key: str | None = None, dtype: CachePrecision = "auto") -> None:
        self.folder = Path(folder)
        self.dtype: CachePrecision = dtype
        stored = stored_teachers(folder)
        if key is None and len(stored) == 1:
            key = next(iter(stored))
        if key is None or key not in stored:
            told = {name: about.get("anatomy", {}).get("family") for name, about in stored.items()}
            raise ValueError(
                f"CachedTeacher needs to know which teacher of {folder} is meant, got key={key!r}; there are "
                f"{told or 'none'}. Pass key=... of one of them, or fill the cache first (fill_cache)."
            )
        self.key = key
        self.anatomy = anatomy_of(stored[key]["anatomy"])
        self._read: tuple[Entries, Store] | None = None

    def opened(self, entries: Entries) -> Store:
        """The cache, of the kinds that are to be read; what `represent` shows from now on.

        Raises:
            ValueError, OSError: see Store.open.
        """
        store = Store.open(self.folder, self.key, Layout(entries.kinds, self.dtype), writes=False)
        self._read = (entries, store)
        return store

    def prepare(self, device: torch.device) -> None:
        """Nothing: there is no model."""

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        """What is kept of a batch; see Teacher.represent.

        A trainer's batches bring this along (see CachedRows); it is asked for batches of another kind (evaluation).

        Raises:
            UnknownRowsError: rows are missing.
        """
        if self._read is None:
            entries = Entries(needs, self.anatomy)
            store = self.opened(entries)
        else:
            entries, store = self._read
        names = self.anatomy.input_names
        given = {name: value.cpu() for name, value in inputs.items() if isinstance(value, Tensor)}
        keys = row_keys(given, names)
        rows = read_rows(store, keys)
        if rows is None:
            raise UnknownRowsError(missing_rows(store, len(store.missing(keys)), len(keys)))
        device = next(value.device for name, value in (own_inputs(inputs) or inputs).items() if name in names)
        batch = entries.batch(rows, real_tokens(given, names))
        return entries.representations({name: value.to(device) for name, value in batch.items()})


def anatomy_of(told: Mapping[str, Any]) -> Anatomy:
    """An anatomy as it was before it was written as JSON.

    Args:
        told: `dataclasses.asdict` of it, with lists for tuples and text for numbers that name classes.
    """
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    stages = plain.pop("stages", None)
    if stages is not None:
        parts: dict[str, Any] = {name: tuple(value) for name, value in stages.items()}
        parts["grids"] = tuple(tuple(grid) for grid in parts["grids"])
        parts["windows"] = tuple(Window(*window) for window in parts["windows"])
        plain["stages"] = VisionStages(**parts)
    plain["label_names"] = {int(index): name for index, name in plain["label_names"].items()}
    return Anatomy(**plain)
