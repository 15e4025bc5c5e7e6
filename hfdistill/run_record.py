"""What one finished run of an experiment was made of, so that a broken-off experiment goes on where it stopped.

A run is found again only if everything that decides its result is the same: the initial student weight by weight, the
teacher's outputs, the training rows, the arguments, the objective, the seed and the version of this package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn

RECORD = "run.json"
"""Name of the file beside a run's student."""


def run_key(
    student: nn.Module, teacher_outputs: Mapping[str, Any], rows: Dataset, description: Mapping[str, Any]
) -> str:
    """A digest of everything that decides a run's result.

    Args:
        student: before its first step.
        teacher_outputs: split -> the teacher's logits there, which stand for the teacher and the evaluation rows.
        rows: to train on; the first and last 64 and their number stand for all.
        description: arguments, objective and seed, as plain values.
    """
    digest = hashlib.sha256(version("hfdistill").encode())
    for name, tensor in student.state_dict().items():
        digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    for name, logits in teacher_outputs.items():
        digest.update(name.encode() + np.ascontiguousarray(logits).tobytes())
    ends: Iterable[int] = sorted({*range(min(64, len(rows))), *range(max(0, len(rows) - 64), len(rows))})
    digest.update(repr((len(rows), [rows[index] for index in ends])).encode())
    digest.update(json.dumps(description, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def finished_seconds(folder: Path, key: str) -> float | None:
    """Training time in seconds of the run with this key, if its student lies in `folder`; else None."""
    path = folder / RECORD
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return float(record["seconds"]) if record.get("key") == key else None


def write_record(folder: Path, key: str, seconds: float) -> None:
    """Note that the run with this key is finished and saved in `folder`."""
    record = {"key": key, "seconds": seconds}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
