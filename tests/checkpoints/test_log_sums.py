"""What the log has summed survives a checkpoint to the last bit."""

from pathlib import Path

import torch

from hfdistill.checkpoints.log_sums import LogSums
from hfdistill.term_averages import TermAverages


def test_sums_come_back_as_they_were(tmp_path: Path) -> None:
    """In double precision what was, and each process its own."""
    averages = TermAverages(lambda values: values)
    for value in (0.1, 0.7):
        averages.add({"kd": torch.tensor(value), "task/a": torch.tensor(value, dtype=torch.float64)})
    LogSums(torch.tensor(0.3), 1 / 3, 7, 2.5, averages.sums()).save(tmp_path, 1, 2)
    assert LogSums.load(tmp_path, 0, 2) is None
    assert LogSums.load(tmp_path, 1, 4) is None
    back = LogSums.load(tmp_path, 1, 2)
    assert back is not None
    assert (back.loss, back.total, back.logged, back.seconds) == (torch.tensor(0.3), 1 / 3, 7, 2.5)
    resumed = TermAverages(lambda values: values)
    resumed.add({"other": torch.tensor(9.0)})
    resumed.restore(back.terms)
    for one in (averages, resumed):
        one.add({"kd": torch.tensor(0.2)})
    assert resumed.pop("loss/") == averages.pop("loss/") != {}


def test_a_run_that_logged_nothing_yet_has_empty_sums(tmp_path: Path) -> None:
    """A checkpoint right after a log line is the usual one."""
    LogSums(torch.tensor(0.0), 0.0, 3, 0.0, {}).save(tmp_path, 0, 1)
    back = LogSums.load(tmp_path, 0, 1)
    assert back is not None
    assert back.terms == {}
