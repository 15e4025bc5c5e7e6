"""Who trains together, and what to say when one of them is lost.

The others learn of it when they wait for it: at once where its connection closes, after `ddp_timeout` where it hangs.
With NCCL that wait is the device's, and NCCL itself ends the process with a message of its own.
"""

from __future__ import annotations

import os
import re
import socket
import time
import zlib
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import distributed
from torch.distributed.distributed_c10d import _set_pg_timeout

_LOST = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|Socket (closed|Timeout)|Timed out waiting|NCCL|timed? ?out", re.I
)
_STATES = {"": "has ended", "Z": "has ended", "X": "has ended", "T": "is stopped", "t": "is held by a debugger"}


class LostProcessError(RuntimeError):
    """One of the processes that train together is gone, or does not answer."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Args:
        own: the number (rank) of this one.
        pids: of all, as each sees its own.
        places: a number that is the same for two processes that see each other's pids.
    """

    own: int
    pids: tuple[int, ...]
    places: tuple[int, ...]

    @classmethod
    def together(cls, accelerator: Accelerator, timeout: int) -> Processes | None:
        """Ask all processes, which must call this together, and none of which then waits longer for another.

        Args:
            accelerator: the run's.
            timeout: `ddp_timeout` in seconds.

        Returns:
            None where there is but one.
        """
        if accelerator.num_processes == 1:
            return None
        if accelerator.device.type == "cpu":  # TrainingArguments give it to the process group of GPUs alone
            _set_pg_timeout(timedelta(seconds=timeout))
        mine = torch.tensor([[os.getpid(), _place()]], device=accelerator.device)
        pids, places = accelerator.gather(mine).T.tolist()
        return cls(accelerator.process_index, tuple(pids), tuple(places))

    def lost(self, wait: float = 2.0) -> list[str]:
        """Which of the others have ended or are stopped, as far as this one can see.

        Args:
            wait: seconds that a process may take to end.
        """
        until = time.monotonic() + wait
        while not (found := self._found()) and time.monotonic() < until:
            time.sleep(0.05)
        return found

    def _found(self) -> list[str]:
        found = []
        for rank, (pid, place) in enumerate(zip(self.pids, self.places, strict=True)):
            if rank == self.own or place != self.places[self.own]:
                continue
            if state := _STATES.get(_state(pid)):
                found.append(f"process {rank} (pid {pid}) {state}")
        return found


def is_lost_process(error: BaseException) -> bool:
    """Whether torch raised this because another process did not answer."""
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(_LOST.search(str(error)))


def explained_loss(processes: Processes, step: int, output_dir: str, timeout: int) -> LostProcessError:
    """The error to raise in its place.

    Args:
        processes: of the run.
        step: updates made before.
        output_dir: where the run's checkpoints are.
        timeout: `ddp_timeout` in seconds.
    """
    lost = processes.lost()
    who = ", ".join(lost) or (
        f"one of the other {len(processes.pids) - 1} processes ended on another machine, or did not answer within "
        f"{timeout} s (ddp_timeout)"
    )
    return LostProcessError(
        f"{who}. This is process {processes.own} of {len(processes.pids)}; it cannot go on alone and ends after step "
        f"{step}. Look at what the lost process wrote last; a process that the system killed for want of memory "
        "leaves nothing (look at `dmesg`). Then start all processes again with resume_from_checkpoint=True, which "
        f"goes on from the last complete checkpoint in {output_dir}."
    )


def _place() -> int:
    """The machine and the pid namespace of this process as a number."""
    namespace = Path("/proc/self/ns/pid")
    words = f"{socket.gethostname()} {os.readlink(namespace) if namespace.is_symlink() else ''}"
    return zlib.crc32(words.encode())


def _state(pid: int) -> str:
    """The state of a process as Linux names it; "" if there is none, "?" where the system does not tell."""
    if not Path("/proc/self/stat").exists():
        return "?"
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
