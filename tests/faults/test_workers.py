"""Workers of the data loader: one that is killed, and an error of the data set in one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import Dataset, get_worker_info
from training_toys import text_rows, trainer_of

from hfdistill.faults.workers import DataWorkerError, TracedRows, traced


class BrokenRows(Dataset[Any]):
    """Rows of text, of which number 5 cannot be had.

    Args:
        kill: the worker that is asked for it is killed, as the system does when memory runs out.
    """

    def __init__(self, kill: bool) -> None:
        self.kill = kill
        self.rows = text_rows(8)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number == 5 and self.kill and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 5:
            raise KeyError("no picture of this name")
        row: dict[str, Any] = self.rows[number]
        return row


def test_a_worker_that_is_killed_is_explained(tmp_path: Path) -> None:
    """It leaves no message of its own, and torch's says nothing of memory."""
    trainer = trainer_of(tmp_path, rows=BrokenRows(kill=True), dataloader_num_workers=1)
    with pytest.raises(DataWorkerError, match=r"DataLoader worker \(pid") as found:
        trainer.train()
    for words in ("memory", "/dev/shm", "dataloader_num_workers=0 (now 1)"):
        assert words in str(found.value)
    assert isinstance(found.value.__cause__, RuntimeError)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_set_names_its_row(tmp_path: Path, workers: int) -> None:
    """Its kind and words stay, and the row is found without a search through the data."""
    trainer = trainer_of(tmp_path, rows=BrokenRows(kill=False), dataloader_num_workers=workers)
    with pytest.raises(KeyError, match="no picture of this name") as found:
        trainer.train()
    told = str(found.value) + "".join(getattr(found.value, "__notes__", ()))
    assert "This happened at row 5 of the data set (BrokenRows)." in told


def test_only_rows_that_are_taken_one_by_one_are_traced() -> None:
    """A `datasets.Dataset` gives whole batches at once, and the Trainer must see that it is one."""
    rows = text_rows(4)
    assert traced(rows) is rows
    ours = traced(BrokenRows(kill=False))
    assert isinstance(ours, TracedRows)
    assert len(ours) == 8
    assert ours[0] == rows[0]
