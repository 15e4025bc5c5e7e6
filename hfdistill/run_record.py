"""What a run was made of, so that a broken-off experiment goes on where it stopped.

A run, finished or in its checkpoints, is found again only if everything that decides its result is the same: the
initial student weight by weight, the teacher's outputs, every training row, the arguments, the objective, the seed and
the version of this package.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import nn
from transformers import TrainingArguments

from hfdistill.checkpoints.folders import checkpoints, clear_unfinished, remove

logger = logging.getLogger(__name__)

RECORD = "run.json"
"""Name of the file beside a run's student."""

_OF_ITS_STUDENT = ("distillation.json", "results.json", "log_history.json", "predictions.safetensors")
_EXPORT = ("onnx.json", "model.onnx", "model.onnx.data")


def rows_digest(rows: Dataset) -> str:
    """A digest of every row, in order; files that rows only name count with their size and time of change."""
    digest = hashlib.sha256()
    for table in rows.with_format("arrow").iter(batch_size=1000):
        for row in table.to_pylist():
            digest.update(repr(row).encode())
            for value in row.values():
                if isinstance(value, dict) and value.get("path") and value.get("bytes") is None:
                    known = Path(value["path"]).stat()
                    digest.update(f"{known.st_size} {known.st_mtime_ns}".encode())
    return digest.hexdigest()


def run_key(student: nn.Module, teacher_outputs: Mapping[str, Any], rows: str, description: Mapping[str, Any]) -> str:
    """A digest of everything that decides a run's result.

    Args:
        student: before its first step.
        teacher_outputs: split -> the teacher's logits there, which stand for the teacher and the evaluation rows.
        rows: `rows_digest` of those to train on.
        description: arguments, objective and seed, as plain values.
    """
    digest = hashlib.sha256(version("hfdistill").encode())
    for name, tensor in student.state_dict().items():
        digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    for name, logits in teacher_outputs.items():
        digest.update(name.encode() + np.ascontiguousarray(logits).tobytes())
    digest.update(rows.encode())
    digest.update(json.dumps(description, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def finished_seconds(folder: Path, key: str, args: TrainingArguments) -> float | None:
    """Training time in seconds of the run with this key, if its student lies in `folder`; else None.

    The records, exports and checkpoints of any other run are removed: its student is about to be overwritten, and a
    stop in between must not leave the one with the other's. Checkpoints that are left are of this run. Of several
    processes the first looks and tells the others, since either all of them train or none.

    Args:
        folder: of the run.
        key: see `run_key`.
        args: of the run.
    """
    told = [_matching(folder, key) if args.process_index == 0 else None]
    if args.world_size > 1:
        broadcast_object_list(told)
    return told[0]


def _matching(folder: Path, key: str) -> float | None:
    path = folder / RECORD
    record = _read(path)
    if record.get("key") == key:
        return None if record["seconds"] is None else float(record["seconds"])
    for name in (RECORD, *_OF_ITS_STUDENT, *_EXPORT):
        (folder / name).unlink(missing_ok=True)
    for checkpoint in checkpoints(folder):
        remove(checkpoint)
    clear_unfinished(folder)
    write_record(folder, key, None)
    return None


def _read(path: Path) -> dict[str, Any]:
    """A record; empty where there is none, or its writing was broken off: such a run is made anew."""
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        logger.warning("%s was not written to its end; the run is made anew.", path)
        return {}
    return record if isinstance(record, dict) else {}


def plain_arguments(args: TrainingArguments) -> dict[str, Any]:
    """What of the arguments decides a result: not where things are kept and shown, nor the seed, which runs set."""
    shown = ("output_dir", "logging", "disable_tqdm", "report_to", "run_name", "log_level", "seed")
    plain = args.to_dict()  # type: ignore[no-untyped-call]
    return {name: value for name, value in plain.items() if not name.startswith(shown) and name != "teacher_cache"}


def write_record(folder: Path, key: str, seconds: float | None) -> None:
    """Note that the run with this key is finished and saved in `folder`; None: that it has begun there."""
    record = {"key": key, "seconds": seconds}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
