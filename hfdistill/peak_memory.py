"""How much memory inference takes: a model is loaded and run in a process of its own, and that process is watched.

Run as a program, `python -m hfdistill.peak_memory FOLDER BATCH DEVICE`, it is that process and prints the bytes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hfdistill.saved_model import auto_class_of

_STATUS = Path("/proc/self/status")


def peak_memory(folder: str | Path, batch: Mapping[str, Tensor], device: torch.device | str = "cpu") -> int:
    """Bytes that loading a saved model and one forward pass add to a process, at their highest.

    On the processor this is resident memory beyond that of the process before it loads the model: weights, activations
    and what the libraries set up for them, with torch and the model's code already imported. On a GPU it is what torch
    allocates there (weights and activations).

    Args:
        folder: `save_pretrained` folder of a classifier.
        batch: Inputs by argument name, as many rows as are to be measured; labels are left out.
        device: Where it runs.

    Raises:
        OSError: The system has no /proc, where the processor's figure is read.
        RuntimeError: The process failed; the message ends with its last words.
    """
    if not _STATUS.is_file() and torch.device(device).type == "cpu":
        raise OSError("peak memory is read from /proc/self, which Linux has and this system lacks.")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "batch.safetensors"
        save_file({name: x.contiguous() for name, x in batch.items() if name != "labels"}, path)
        command = [sys.executable, "-m", __name__, str(folder), str(path), str(device)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # our own program
    if run.returncode != 0:
        reason = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
        raise RuntimeError(f"the process that was to measure the memory of {folder} failed: {reason}")
    return int(run.stdout.split()[-1])


def _measured(folder: str, batch_file: str, device: torch.device) -> int:
    kind = auto_class_of(folder)  # this imports the model's code, which is none of its memory
    batch = {name: x.to(device) for name, x in load_file(batch_file).items()}
    if device.type == "cpu":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
        before = _resident("VmHWM")
    with torch.inference_mode():
        kind.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval().to(device)(**batch)
    return _resident("VmHWM") - before if device.type == "cpu" else torch.cuda.max_memory_allocated(device)


def _resident(name: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))  # given in kB


if __name__ == "__main__":
    print(_measured(sys.argv[1], sys.argv[2], torch.device(sys.argv[3])))
