"""Batches that bring along what the teacher shows of them, read from a cache while the step before is computed.

A row is found by what it holds, not by its place: `keys.row_keys` names it by exactly what the teacher reads of it. So
rows are found again however they are shuffled, grouped, padded, spread over processes or chosen, by another run, seed
or preset too; and whatever the teacher would read otherwise is another row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfdistill.representations import CACHED, IGNORE_INDEX, ROW_KEYS
from hfdistill.teacher_cache.entries import Entries
from hfdistill.teacher_cache.keys import row_keys
from hfdistill.teacher_cache.store import Store
from hfdistill.teacher_tokens import own_inputs


class UnknownRowsError(ValueError):
    """Rows of which a cache holds nothing and nobody can be asked, or which are other ones each time."""


@dataclass(frozen=True)
class CachedRows:
    """A collator whose batches hold under CACHED what the teacher shows, or else under ROW_KEYS the rows' names.

    Args:
        collator: makes the batches.
        store: of the teacher.
        entries: what is read of each row.
        fills: whether there is a teacher that can be asked for rows which are missing.
        token_labels: name of labels of tokens, for heads whose labels the padding mask does not align; "" for others.
    """

    collator: Callable[[list[Any]], Any]
    store: Store
    entries: Entries
    fills: bool
    token_labels: str = ""

    def __call__(self, rows: list[Any]) -> Any:
        """One batch.

        Raises:
            UnknownRowsError: rows are missing and nobody can be asked.
            ValueError: labels in the padding; nothing that the teacher reads.
        """
        batch = self.collator(rows)
        if not isinstance(batch, Mapping):
            return batch
        names = self.entries.teacher.input_names
        keys, real = row_keys(batch, names), real_tokens(batch, names)
        self._check_labels(batch, real)
        found = read_rows(self.store, keys)
        if found is not None:
            return {**batch, CACHED: self.entries.batch(found, real)}
        if not self.fills:
            raise UnknownRowsError(missing_rows(self.store, len(self.store.missing(keys)), len(keys)))
        return {**batch, ROW_KEYS: torch.tensor([list(key) for key in keys], dtype=torch.uint8)}  # (B, 16)

    def _check_labels(self, batch: Mapping[str, Any], real: Tensor | None) -> None:
        labels = batch.get(self.token_labels)
        if real is None or not isinstance(labels, Tensor) or labels.shape != real.shape:
            return
        if bool(((labels != IGNORE_INDEX) & ~real).any()):
            raise ValueError(
                f"{self.token_labels} name classes where the batch is padded, and what the teacher shows of padding "
                f"is not kept: 0 would be learnt. Pad labels with {IGNORE_INDEX} (DataCollatorForTokenClassification "
                "does so), or leave the teacher's cache off."
            )


def read_rows(store: Store, keys: list[bytes]) -> list[dict[str, Tensor]] | None:
    """What is kept of rows; None where that of any is missing, or turns out to be damaged."""
    if store.missing(keys):
        return None
    rows = [row for row in store.read(keys) if row is not None]
    return rows if len(rows) == len(keys) else None


def real_tokens(batch: Mapping[str, Any], names: tuple[str, ...]) -> Tensor | None:
    """(B, N) bool, where the tokens stand that the teacher reads; None: no place is known to be padding.

    Args:
        batch: as it is collated.
        names: argument names of the teacher's forward.
    """
    mask = (own_inputs(batch) or batch).get("attention_mask") if "attention_mask" in names else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def missing_rows(store: Store, count: int, size: int) -> str:
    """The message that rows are missing of a teacher that cannot be asked."""
    return (
        f"the cache {store.folder} has not what the teacher shows of {count} of {size} rows of a batch, and without "
        "the teacher's model nobody can be asked. Rows are found by what they hold: other tokens (tokenizer, "
        "max_length), other rows, an objective that needs more of the teacher, or random augmentation are not there. "
        "Fill it with the model once: `hfdistill cache`, or fill_cache(DistillationTrainer(teacher=model, ...))."
    )
