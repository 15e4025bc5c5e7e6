"""What to say when a data loader's worker dies, and which row a data set could not give."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset, IterableDataset


class DataWorkerError(RuntimeError):
    """A worker process of the data loader ended without an answer."""


def is_dead_worker(error: BaseException) -> bool:
    """Whether torch raised this because a worker of the data loader is gone."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def explained_worker(error: BaseException, workers: int) -> DataWorkerError:
    """The error to raise in its place.

    Args:
        error: torch's.
        workers: how many there are, `dataloader_num_workers`.
    """
    return DataWorkerError(
        f"a worker of the data loader died ({str(error).strip()}), so that batches are missing. It left no message: "
        "usually the system killed it because memory ran out (look at `dmesg`), or shared memory is too small "
        "(/dev/shm; in a container --ipc=host or --shm-size). To see an error of the data set itself where it "
        f"happens, set dataloader_num_workers=0 (now {workers}). To need less memory, take fewer workers or a smaller "
        "dataloader_prefetch_factor."
    )


class TracedRows(Dataset[Any]):
    """A data set whose errors say at which row they happened, in a worker's traceback too.

    Args:
        rows: a map-style data set.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        try:
            return self.rows[number]
        except Exception as error:
            error.add_note(f"This happened at row {number!r} of the data set ({type(self.rows).__name__}).")
            raise


def traced(dataset: Any) -> Any:
    """The same rows, with their number in an error; as it is where rows are not taken one by one."""
    plain = isinstance(dataset, Dataset) and not isinstance(dataset, IterableDataset)
    return TracedRows(dataset) if plain and "__getitems__" not in dir(dataset) else dataset
