"""What the log has summed up to a checkpoint, kept in it: the next line is then that of the uninterrupted run.

The Trainer logs the mean loss over the steps between two lines, and begins anew when it is resumed in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_FILE = "log_sums_{rank}-of-{world}.safetensors"


@dataclass(frozen=True)
class LogSums:
    """Sums of one process.

    Args:
        loss: of the steps since the last log line, a scalar.
        total: of the losses of all log lines.
        logged: step of the last log line.
        seconds: spent in training up to now, by all of the run's parts.
        terms: of the objective's terms since then, as TermAverages holds them.
    """

    loss: Tensor
    total: float
    logged: int
    seconds: float
    terms: dict[str, Tensor]

    def save(self, checkpoint: str | Path, rank: int, world: int) -> None:
        """Write this process's sums into a checkpoint folder.

        Args:
            checkpoint: the folder.
            rank: of this process.
            world: number of processes.
        """
        tensors = {f"terms/{name}": value for name, value in self.terms.items()}
        doubles = {"total": self.total, "seconds": self.seconds}
        tensors |= {name: torch.tensor(value, dtype=torch.float64) for name, value in doubles.items()}
        tensors |= {"loss": self.loss, "logged": torch.tensor(self.logged)}
        held = {name: value.detach().cpu().clone() for name, value in tensors.items()}
        save_file(held, Path(checkpoint) / _FILE.format(rank=rank, world=world))

    @classmethod
    def load(cls, checkpoint: str | Path, rank: int, world: int) -> LogSums | None:
        """This process's sums; None where the checkpoint was written by another number of processes, or by others."""
        path = Path(checkpoint) / _FILE.format(rank=rank, world=world)
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        terms = {name.removeprefix("terms/"): value for name, value in held.items() if name.startswith("terms/")}
        return cls(held["loss"], float(held["total"]), int(held["logged"]), float(held["seconds"]), terms)
