"""The random numbers of making a batch, drawn from what the batch is and not from where the generators stand.

Masked tokens, crops and the like are drawn when rows are fetched and collated, some batches before the model sees
them, in worker processes or not: a resumed run, which skips the batches before it, would draw others. Here seed, epoch
and rows decide, and the generators that dropout draws from are left as they were.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


class BatchRandomness:
    """Random numbers of one run's training batches; see the module.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.long)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # workers may outlive an epoch
        self._batch = 0
        self.order = torch.Generator()
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Let the batches from now on, and what a sampler draws from `order`, be those of this epoch."""
        self._epoch.fill_(epoch)
        self.order.manual_seed(_digest(f"{self.seed} {epoch}"))

    def rows(self, dataset: Any) -> Dataset[Any]:
        """The same rows, fetched with the random numbers of their batch."""
        return _Rows(dataset, self)

    def collator(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The same collator, with the random numbers of the batch that was fetched last."""
        return _Collator(collate, self)

    @contextmanager
    def of_batch(self, numbers: Sequence[int] | None = None) -> Iterator[None]:
        """Draw from the numbers of a batch: of these rows, or to make one of those that were fetched last."""
        if numbers is not None:
            self._batch = _digest(f"{self.seed} {int(self._epoch)} {list(numbers)}")
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        seed = self._batch if numbers is not None else self._batch ^ 0xFFFFFFFF  # fetching and collating draw apart
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])


def _digest(text: str) -> int:
    """A seed below 2**32, as the narrowest of the generators takes it."""
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest())


class _Rows(Dataset[Any]):
    """A map-style data set whose batches are fetched with their own random numbers."""

    def __init__(self, rows: Any, randomness: BatchRandomness) -> None:
        self.rows, self.randomness = rows, randomness
        self._together = "__getitems__" in dir(rows)  # a `datasets.Dataset` reads a batch at once

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        return self.rows[number]

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        with self.randomness.of_batch(numbers):
            together: list[Any] = self.rows.__getitems__(numbers) if self._together else []
            return together or [self.rows[number] for number in numbers]


class _Collator:
    """A collator that draws from the numbers of the batch at hand."""

    def __init__(self, collate: Callable[[Any], Any], randomness: BatchRandomness) -> None:
        self.collate, self.randomness = collate, randomness

    def __call__(self, rows: Any) -> Any:
        with self.randomness.of_batch():
            return self.collate(rows)
