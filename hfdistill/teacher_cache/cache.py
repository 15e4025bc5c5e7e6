"""One run's use of a teacher's cache: what is read of it, and what is added to it while the teacher is still asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.representations import CACHED, ROW_KEYS, Needs, Representations
from hfdistill.teacher_cache.collator import CachedRows, real_tokens
from hfdistill.teacher_cache.entries import Entries
from hfdistill.teacher_cache.store import Store

_ALIGNED_BY_LABELS = ("ForTokenClassification", "ForMaskedLM")
"""Heads whose labels alone say which of the teacher's answers to tokens count."""


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TeacherCache:
    """What is kept of a teacher, as one run uses it.

    Args:
        store: of this teacher, of all that is kept for this run.
        entries: what the run reads; more of them where rows are kept for other runs, too.
        asks: what a live pass is asked for, so that all of a row is kept at once; None: there is no model to ask.
        label_name: what labels are called.

    Attributes:
        kept_rows: how many rows were added by this process.
        kept_bytes: what these take.
        expected_bytes: that are still to be written for a whole training set, about, where a few rows told.
    """

    def __init__(self, store: Store, entries: Sequence[Entries], asks: Needs | None, label_name: str) -> None:
        self.store = store
        self.entries = tuple(entries)
        self.asks = asks
        self.label_name = label_name
        self.kept_rows = self.kept_bytes = self.expected_bytes = 0

    @property
    def teacher(self) -> Anatomy:
        """The teacher's anatomy."""
        return self.entries[0].teacher

    def widened(self, others: Iterable[TeacherCache]) -> TeacherCache:
        """The same cache with all that other runs of this teacher read, too.

        Args:
            others: which can be asked.

        Raises:
            ValueError: of another teacher.
        """
        entries, asks = list(self.entries), self.asks or Needs()
        for other in others:
            if other.store.folder != self.store.folder:
                raise ValueError(
                    f"one cache cannot be filled for two teachers, got those of {self.store.folder} and "
                    f"{other.store.folder}. Fill them one after the other."
                )
            entries, asks = [*entries, *other.entries], asks | (other.asks or Needs())
        kinds = dict.fromkeys(kind for one in entries for kind in one.kinds)
        store = Store(self.store.folder, replace(self.store.layout, kinds=tuple(kinds)), self.store.about)
        return TeacherCache(store, entries, asks, self.label_name)

    def collator(self, own: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
        """The same collator, whose batches bring along what is kept."""
        labels = self.label_name if self.teacher.head in _ALIGNED_BY_LABELS else ""
        return CachedRows(own, self.store, self.entries[0], self.asks is not None, labels)

    def shown(self, inputs: Mapping[str, Any]) -> Representations | None:
        """What is kept of a batch; None where the teacher must be asked."""
        kept = inputs.get(CACHED)
        return None if kept is None else self.entries[0].representations(kept)

    def asked(self, inputs: Mapping[str, Any], needs: Needs) -> Needs:
        """What the teacher is to be asked for: all that is kept, where the batch is to be; else what is needed now."""
        return needs if self.asks is None or ROW_KEYS not in inputs else self.asks

    def keep(self, inputs: Mapping[str, Any], shown: Representations) -> None:
        """Keep what a live pass showed of a batch, if it says that its rows are missing.

        Rows with NaN or +inf are left out: they are the watch's matter, and never knowledge.

        Raises:
            ValueError: see Entries.rows and Store.append.
            OSError: there is no room for it.
        """
        if ROW_KEYS not in inputs:
            return
        keys = [bytes(key) for key in inputs[ROW_KEYS].tolist()]
        real = real_tokens(inputs, self.teacher.input_names)
        rows: list[dict[str, Tensor]] = [{} for _ in keys]
        for entries in self.entries:
            for row, more in zip(rows, entries.rows(shown, real, len(keys)), strict=True):
                row |= more
        missing = set(self.store.missing(keys))
        added = {keys[at]: row for at, row in enumerate(rows) if at in missing and all(map(_is_sound, row.values()))}
        self.store.append(list(added), list(added.values()))
        self.kept_rows += len(added)
        self.kept_bytes += sum(self._bytes(tensor) for row in added.values() for tensor in row.values())

    def _bytes(self, tensor: Tensor) -> int:
        """What a tensor takes where it is kept."""
        dtype = self.store.layout.dtype
        kept = tensor.dtype if dtype == "auto" or not tensor.is_floating_point() else _DTYPES[dtype]
        return tensor.numel() * kept.itemsize


def _is_sound(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or not bool((tensor.isnan() | tensor.isposinf()).any())
