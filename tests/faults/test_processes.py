"""A process that is lost: the others must end by themselves, say who it was, and how to go on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import lost_process
import pytest
import torch

from hfdistill.checkpoints.folders import last_complete_checkpoint
from hfdistill.faults.processes import Processes, explained_loss, is_lost_process

FATES = {"SIGKILL": "has ended", "SIGSTOP": "is stopped"}
"""Signal -> what is said of the process that got it."""


def started(folder: Path, fate: str) -> list[subprocess.Popen[str]]:
    """Both processes of a run, not told to end together by anybody."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests = Path(__file__).parents[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    common["PYTHONPATH"] = os.pathsep.join(map(str, (tests, tests.parent)))
    words = [sys.executable, lost_process.__file__, str(folder), fate]
    return [
        subprocess.Popen(
            words,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=heard,
            stderr=heard,
            text=True,
        )
        for rank, heard in enumerate((subprocess.PIPE, subprocess.DEVNULL))
    ]


class Ended(NamedTuple):
    """What became of the first process after the second was lost."""

    status: int
    out: str
    said: str
    folder: Path
    lost: int


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Two runs at once, each with its own end."""
    folders = {fate: tmp_path_factory.mktemp(fate) for fate in FATES}
    runs = {fate: started(folder, fate) for fate, folder in folders.items()}
    try:
        said = {fate: survivor.communicate(timeout=240) for fate, (survivor, _) in runs.items()}
    finally:
        for process in (process for run in runs.values() for process in run):
            process.kill()
            process.wait()
    return {
        fate: Ended(survivor.returncode, *said[fate], folders[fate], lost.pid)
        for fate, (survivor, lost) in runs.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(("fate", "told"), FATES.items())
def test_the_others_end_by_themselves(ended: dict[str, Ended], fate: str, told: str) -> None:
    """A run that waits for ever costs days; one that ends without a word is started again from the beginning."""
    status, out, said, folder, lost = ended[fate]
    assert "together" in out, said[-3000:]
    assert status not in (0, None)
    message = next(line for line in said.splitlines() if "LostProcessError:" in line)
    assert f"process 1 (pid {lost}) {told}. This is process 0 of 2" in message
    assert f"ends after step {lost_process.STEP}" in message
    assert "resume_from_checkpoint=True" in message
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-2")


def test_who_is_gone_is_seen_and_who_lives_is_not_accused() -> None:
    """The process to look at is the first that failed, not any that waits like this one."""
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        processes = Processes(0, (os.getpid(), sleeper.pid, sleeper.pid), (1, 1, 2))
        assert processes.lost(wait=0.1) == []
        alive = str(explained_loss(processes, 7, "runs/x", 30))
        assert "one of the other 2 processes ended on another machine, or did not answer within 30 s" in alive
    finally:
        sleeper.kill()
    assert processes.lost() == [f"process 1 (pid {sleeper.pid}) has ended"]  # not yet asked for by its parent
    sleeper.wait()
    assert processes.lost() == [f"process 1 (pid {sleeper.pid}) has ended"]
    assert "ends after step 7" in str(explained_loss(processes, 7, "runs/x", 30))


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[pair.cc:537] Read error [127.0.0.1]:10934: Connection reset by peer."), True),
        (RuntimeError("[unbound_buffer.cc:78] Timed out waiting 8000ms for recv operation to complete"), True),
        (torch.distributed.DistNetworkError("The client socket has failed to connect"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x8 and 9x3)"), False),
        (ValueError("Connection reset by peer"), False),
    ],
)
def test_only_lost_processes_are_taken_for_such(error: Exception, lost: bool) -> None:
    """An error of this process must not be blamed on another one."""
    assert is_lost_process(error) == lost
