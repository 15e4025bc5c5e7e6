"""What a recipe, or a trainer, left in its folders, read back: results, predictions, logs, and where the models lie.

Two kinds of folder are known: a recipe's output folder (results.json, evaluation.safetensors, one folder per arm and
seed), and a student's own folder (config.json and what was written beside it). Nothing here measures or judges.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file as load_tensors
from torch import Tensor

from hfdistill.measurement import Latency
from hfdistill.report.results import CONTROL, ArmResult

Array: TypeAlias = npt.NDArray[Any]
SAMPLE_BATCH = "sample_batch.safetensors"
_MODEL = ("config.json", "adapter_config.json")


@dataclass
class Outcome:
    """Everything that one folder tells of a comparison, or of a student alone.

    Args:
        name: of the folder, for the reader.
        metric: that stands for the task; "" where none is known.
        teacher: its results; None where the folder tells of a student alone.
        arms: results of the control and the students.
        labels: names of the classes.
        protocol: what was run.
        folders: arm -> folder of each seed's model that is there.
        teacher_folder: None where the teacher is not on this machine.
        evaluation: split -> true labels (rows,), the split of the table first.
        teacher_logits: split -> (rows, K).
        batch: real inputs, as the students' forward takes them; None where none were kept.
        notes: what is missing here.
    """

    name: str
    metric: str = ""
    teacher: ArmResult | None = None
    arms: list[ArmResult] = field(default_factory=list)
    labels: Sequence[str] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    folders: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    teacher_folder: Path | None = None
    evaluation: Mapping[str, Array] = field(default_factory=dict)
    teacher_logits: Mapping[str, Array] = field(default_factory=dict)
    batch: Mapping[str, Tensor] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def split(self) -> str | None:
        """The evaluation split whose figures stand in the table."""
        return next(iter(self.evaluation), None)

    def predictions(self, arm: str) -> list[Mapping[str, Array]]:
        """Split -> logits (rows, K) of each seed's model of an arm; of fewer seeds where a file is missing.

        Raises:
            ValueError: they are not of the rows whose labels are here.
        """
        files = [folder / "predictions.safetensors" for folder in self.folders.get(arm, ())]
        found = [(path, load_arrays(path)) for path in files if path.is_file()]
        for path, predicted in found:
            for split, labels in self.evaluation.items():
                rows = len(predicted.get(split, ()))
                if rows != len(labels):
                    raise ValueError(
                        f"expected {len(labels)} rows of {split!r} in {path}, as many as labels, got {rows}. "
                        "They are of another evaluation; run the recipe again, which writes both."
                    )
        return [predicted for _, predicted in found]


def read_outcome(folder: str | Path, name: str = "") -> Outcome:
    """Read a recipe's output folder, or a student's.

    Args:
        folder: where it is.
        name: for the reader; the folder's own without it.

    Raises:
        ValueError: it is neither; what is in it does not fit together.
    """
    folder, name = Path(folder), name or Path(folder).resolve().name
    student = any((folder / file).is_file() for file in _MODEL)
    results = _json(folder / "results.json")
    if results is None and not student:
        nothing = "a file" if folder.is_file() else "no such folder"
        held = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else nothing
        raise ValueError(
            f"expected a recipe's output folder (with results.json) or a student's (with config.json), found in "
            f"{folder}: {held}. A recipe writes its results when all arms are done: run it again and it goes on where "
            "it stopped."
        )
    home = folder.resolve().parent.parent if student else folder  # OUT of OUT/<arm>/seed-<k>
    outcome = Outcome(name) if results is None else _compared(name, results)
    outcome.folders = _folders(outcome, folder, results or {}, student)
    outcome.teacher_folder = _teacher_folder(results or _json(home / "results.json") or {}, home)
    if results is not None:
        _read_evaluation(outcome, home)
    places = (folder / SAMPLE_BATCH, home / SAMPLE_BATCH)
    path = next((place for place in places if place.is_file()), None)
    if path is not None:
        outcome.batch = load_tensors(path)
    else:
        outcome.notes.append(
            f"{name}: no {SAMPLE_BATCH}, so that nothing could be run on real inputs: no latency, "
            "operations, memory or layer similarity is measured."
        )
    return outcome


def distillation_record(folder: Path) -> Mapping[str, Any]:
    """What the trainer noted beside a student; empty where it noted nothing."""
    return _json(folder / "distillation.json") or {}


def mapped_layers(folder: Path) -> list[tuple[int, int]]:
    """Pairs (student layer, teacher layer) that any term of a student's objective compared, in order."""
    terms = distillation_record(folder).get("objective", ())
    return sorted({(int(ours), int(theirs)) for term in terms for ours, theirs in term.get("layers", ())})


def exported_latencies(folder: Path) -> tuple[list[Latency], str]:
    """Latencies of a student's ONNX export, as measured when it was exported, and on which machine."""
    record = _json(folder / "onnx.json") or {}
    return [Latency.from_record(latency) for latency in record.get("latencies", ())], str(record.get("machine", ""))


def training_log(folder: Path) -> list[Mapping[str, Any]]:
    """What the Trainer logged, entry by entry; empty where no log was kept."""
    return _json(folder / "log_history.json") or []


def _compared(name: str, results: Mapping[str, Any]) -> Outcome:
    try:
        return Outcome(
            name,
            metric=results["metric"],
            teacher=ArmResult.from_record(results["teacher"]),
            arms=[ArmResult.from_record(arm) for arm in results["arms"]],
            labels=tuple(results.get("labels") or ()),
            protocol=results.get("protocol") or {},
        )
    except (KeyError, TypeError) as error:
        found = f"no {error}" if isinstance(results, Mapping) else f"a {type(results).__name__}"
        raise ValueError(
            f"expected in results.json of {name} what a recipe writes (metric, teacher, arms), and found {found}. Run "
            "the recipe again, which writes it."
        ) from error


def _folders(outcome: Outcome, folder: Path, results: Mapping[str, Any], student: bool) -> dict[str, list[Path]]:
    """Arm -> folders that are there; an output folder may have been moved since it was written."""
    if student:
        own = [arm.name for arm in outcome.arms if arm.name != CONTROL] or [arm.name for arm in outcome.arms]
        return {(own or [outcome.name])[0]: [folder]}
    named: Mapping[str, Any] = results.get("folders") or {}
    found = {}
    for arm in outcome.arms:
        given = named.get(arm.name) or []
        paths = [Path(path) for path in ([given] if isinstance(given, str) else given)]
        found[arm.name] = [
            place
            for path in paths
            if (place := next((p for p in (folder / arm.name / path.name, path) if p.is_dir()), None)) is not None
        ] or sorted(folder.glob(f"{arm.name}/seed-*"))
        if not found[arm.name]:
            outcome.notes.append(
                f"{outcome.name}: no folder of the arm {arm.name!r} is here, so that its figures are those of "
                "results.json alone: no intervals, curves, calibration or layer similarity."
            )
    return found


def _teacher_folder(results: Mapping[str, Any], home: Path) -> Path | None:
    given = results.get("teacher_folder")
    places = ([Path(given), home / Path(given).name] if given else []) + [home / "teacher"]
    return next((place for place in places if (place / "config.json").is_file()), None)


def _read_evaluation(outcome: Outcome, home: Path) -> None:
    path = home / "evaluation.safetensors"
    if not path.is_file():
        outcome.notes.append(
            f"{outcome.name}: no evaluation.safetensors, so that there are no labels to compare predictions with: no "
            "intervals, calibration or confusion."
        )
        return
    arrays = load_arrays(path)
    present = [name.removesuffix("/labels") for name in sorted(arrays) if name.endswith("/labels")]
    order = [split for split in outcome.protocol.get("evaluation_rows", ()) if split in present]
    splits = order + [split for split in present if split not in order]
    outcome.evaluation = {split: np.asarray(arrays[f"{split}/labels"]) for split in splits}
    logits = {split: arrays.get(f"{split}/teacher_logits") for split in splits}
    outcome.teacher_logits = {split: found for split, found in logits.items() if found is not None}


def _json(path: Path) -> Any:
    """The content of a JSON file, None where there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Was its writing broken off? Write it again.") from error
