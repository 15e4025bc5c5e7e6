"""Rows that a teacher might have shown, each recognisable by its number, and processes that keep them in a store."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from hfdistill.teacher_cache import store as stores
from hfdistill.teacher_cache.store import Layout, Store

TEACHER = "c0ffee" * 10 + "c0de"
LAYOUT = Layout(("logits", "hidden_states/1"))


def key_of(number: int) -> bytes:
    """The key of a row."""
    return number.to_bytes(16, "big")


def keys_of(numbers: Iterable[int]) -> list[bytes]:
    """The keys of rows."""
    return [key_of(number) for number in numbers]


def row_of(number: int) -> dict[str, Tensor]:
    """What is kept of a row: logits, and a state of as many tokens as its number decides."""
    generator = torch.Generator().manual_seed(number)
    return {
        "logits": torch.randn(3, generator=generator),
        "hidden_states/1": torch.randn(1 + number % 5, 4, generator=generator),
    }


def is_row(row: dict[str, Tensor] | None, number: int) -> bool:
    """Whether something read is, bit by bit, a row."""
    told = row_of(number)
    return row is not None and row.keys() == told.keys() and all(torch.equal(row[kind], told[kind]) for kind in told)


def store_in(folder: str | Path, layout: Layout = LAYOUT, writes: bool = True) -> Store:
    """The store of the teacher of these tests."""
    return Store.open(folder, TEACHER, layout, writes=writes)


def kept(store: Store, numbers: Iterable[int]) -> Store:
    """The store, with these rows in a file of their own."""
    numbers = list(numbers)
    store.append(keys_of(numbers), [row_of(number) for number in numbers])
    store.flush()
    return store


def fill(folder: str, numbers: list[int], shard_bytes: int) -> None:
    """Fill a store as a training run does: by batches, with a look for what is there already."""
    stores.SHARD_BYTES = shard_bytes
    store = store_in(folder)
    for start in range(0, len(numbers), 8):
        batch = numbers[start : start + 8]
        lacking = [batch[at] for at in store.missing(keys_of(batch))]
        store.append(keys_of(lacking), [row_of(number) for number in lacking])
        read = store.read(keys_of(batch))
        if not all(is_row(row, number) for row, number in zip(read, batch, strict=True)):
            raise ValueError(f"rows {batch} were read as something else")
    store.flush()
