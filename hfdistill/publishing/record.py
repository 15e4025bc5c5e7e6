"""What a trainer knows of its run, as plain values: distillation.json beside a saved student.

A report and a model card are written from it. It is published with the student, so it tells names, never where on a
machine something lay, and no token.
"""

from __future__ import annotations

import inspect
import json
import math
import platform
import re
from collections.abc import Callable, Mapping, Sized
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not re-exported
from torch import nn
from transformers import PreTrainedModel

from hfdistill.anatomy import Anatomy, base_model
from hfdistill.attachment import SUBMODULE
from hfdistill.distributed.sharding import class_of, element_count
from hfdistill.layer_map import LayerMap
from hfdistill.losses.base import DistillationLoss
from hfdistill.losses.method import Method
from hfdistill.measurement import machine_name
from hfdistill.names import without_secrets
from hfdistill.objective import Objective
from hfdistill.schedules import Constant
from hfdistill.shared_base import SharedBaseTeacher
from hfdistill.teachers import FrozenTeacher, Teacher, auto_class

RECORD = "distillation.json"
"""Name of the file."""

_OF_THIS_MACHINE = ("hub_", "logging", "output_dir", "project", "push_to_hub", "resume_from", "run_name", "trackio")
_PATH = re.compile(r"(?<![\w.:/])~?/(?:[^\s'\",/]+/)+")


class DistillationRun(Protocol):
    """What of a trainer is recorded."""

    model: Any
    args: Any
    state: Any
    train_dataset: Any
    teacher: Teacher | None
    objective: Objective


def training_record(run: DistillationRun) -> dict[str, Any]:
    """Everything that a trainer knows of what it did, ready for JSON.

    Args:
        run: a DistillationTrainer, before, while or after it trains.

    Returns:
        "teacher" (None without one), "student", "preset" ("" where none was named), "objective" (one entry per term),
        "arguments", "training", "evaluation" (of the saved weights, as the trainer logged it), "versions", "machine".
    """
    record = {
        "teacher": None if run.teacher is None else _teacher(run.teacher),
        "student": _student(run.model),
        "preset": run.objective.preset,
        "objective": [_term(name, run.objective[name]) for name in run.objective],
        "arguments": _arguments(run.args),
        "training": _training(run),
        "evaluation": _evaluation(run),
        "versions": _versions(run.model),
        "machine": machine_name(run.args.device),
    }
    plain: dict[str, Any] = _changed(json.loads(json.dumps(record, default=str)), _finite)
    return plain


def write_training_record(run: DistillationRun, folder: str | Path) -> None:
    """Write `training_record` into a student's folder."""
    text = json.dumps(training_record(run), indent=2, allow_nan=False)
    (Path(folder) / RECORD).write_text(without_secrets(text) + "\n", encoding="utf-8")


def without_folders(value: Any) -> Any:
    """Plain values that tell nothing of this machine: of an absolute path only its last name is left."""
    return _changed(value, lambda leaf: _last_name(leaf) if isinstance(leaf, str) else leaf)


def is_repository_name(name: str) -> bool:
    """Whether the hub could have a model of this name; a folder of this machine may bear such a name too."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return bool(name)


def _origin(model: nn.Module) -> dict[str, str]:
    """Where a model was loaded from: {"name", "place"}, the place "hub", "folder", or "memory" for one built here."""
    inner = base_model(model)
    name = inner.config.name_or_path if isinstance(inner, PreTrainedModel) else ""
    if not name:
        return {"name": "", "place": "memory"}
    if Path(name).exists() or not is_repository_name(name):
        return {"name": Path(name).name, "place": "folder"}
    return {"name": name, "place": "hub"}


def _teacher(teacher: Teacher) -> dict[str, Any]:
    if not isinstance(teacher, FrozenTeacher):
        return {"name": "", "place": "memory", "class": type(teacher).__name__, "parameters": 0}
    about = {**_origin(teacher.model), **_sizes(teacher.model)}
    if isinstance(teacher, SharedBaseTeacher):  # its model holds the student's adapter, too
        about |= {"parameters": sum(own.numel() for own in teacher.base_parameters()), "trained_parameters": 0}
        about |= {"shared_base": True}
    return about


def _student(student: nn.Module) -> dict[str, Any]:
    inner = base_model(student)
    try:
        auto = auto_class(inner).__name__
    except ValueError:
        auto = ""
    return {
        **_sizes(student),
        "auto_class": auto,
        "labels": list(Anatomy.of(student).label_names.values()),
        "base_model": _origin(student),
        "adapter": None if inner is student else _adapter(student),
    }


def _sizes(model: nn.Module) -> dict[str, Any]:
    counted = [value for name, value in model.named_parameters() if not name.startswith(f"{SUBMODULE}.")]
    return {
        "class": class_of(base_model(model)).__name__,
        "parameters": sum(element_count(value) for value in counted),
        "trained_parameters": sum(element_count(value) for value in counted if value.requires_grad),
    }


def _adapter(student: Any) -> dict[str, Any]:
    """The configuration of a PeftModel's adapter, without what is empty."""
    options = student.active_peft_config.to_dict()
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in options.items()}
    return {name: value for name, value in plain.items() if value and name != "base_model_name_or_path"}


def _term(name: str, loss: DistillationLoss) -> dict[str, Any]:
    held = vars(loss)
    taken = [key for key in inspect.signature(type(loss)).parameters if key in held and key != "weight"]
    return {
        "name": name,
        "class": type(loss).__name__,
        "weight": _setting(loss.weight),
        "options": {key: _setting(held[key]) for key in taken},
        "layers": [list(pair) for pair in held.get("pairs", ())],
        "papers": [asdict(paper) for paper in (loss.method or Method()).papers],
    }


def _setting(value: Any) -> Any:
    """A loss's keyword as one would write it: a schedule and a layer map by their text."""
    if isinstance(value, Constant):
        return value.value
    if isinstance(value, LayerMap):
        return str(value)
    if isinstance(value, list | tuple):
        return [_setting(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def _arguments(args: Any) -> dict[str, Any]:
    """The run's arguments, less what says only where things are written and shown."""
    plain: dict[str, Any] = args.to_dict()  # of any token it gives the name alone
    kept = {name: plain[name] for name in plain if not name.startswith(_OF_THIS_MACHINE)}
    return {name: without_folders(json.loads(json.dumps(value, default=str))) for name, value in kept.items()}


def _training(run: DistillationRun) -> dict[str, Any]:
    """Rows, steps, and what the trainer logged last of time and loss; these are of the last call of `train`."""
    rows = run.train_dataset
    end: Mapping[str, Any] = next((line for line in reversed(run.state.log_history) if "train_runtime" in line), {})
    return {
        "rows": len(rows) if isinstance(rows, Sized) else None,
        "steps": run.state.global_step,
        "epochs": run.state.epoch,
        "seconds": end.get("train_runtime"),
        "train_loss": end.get("train_loss"),
        "seed": run.args.seed,
        "batch_size": run.args.train_batch_size * run.args.gradient_accumulation_steps * run.args.world_size,
    }


def _evaluation(run: DistillationRun) -> dict[str, float]:
    """The metrics logged at the step whose weights the student has; those of other steps are another model's."""
    history = run.state.log_history
    ended = any("train_runtime" in line for line in history)  # only then has the best checkpoint been loaded
    step = run.state.best_global_step if ended and run.args.load_best_model_at_end else run.state.global_step
    lines = [line for line in history if line.get("step") == step]
    return {name: value for line in lines for name, value in line.items() if _is_metric(name)}


def _is_metric(name: str) -> bool:
    speed = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time")
    return name.startswith("eval_") and not name.endswith(speed)


def _versions(student: nn.Module) -> dict[str, str]:
    packages = ["hfdistill", "transformers", "torch", *(["peft"] if base_model(student) is not student else [])]
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """JSON's values with each one that is neither a list nor a mapping changed."""
    if isinstance(value, Mapping):
        return {name: _changed(entry, change) for name, entry in value.items()}
    if isinstance(value, list):
        return [_changed(entry, change) for entry in value]
    return change(value)


def _finite(leaf: Any) -> Any:
    """None for NaN and infinity, which JSON does not have."""
    return None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf


def _last_name(text: str) -> str:
    whole = next((path for kind in (PurePosixPath, PureWindowsPath) if (path := kind(text)).is_absolute()), None)
    return _PATH.sub("", text) if whole is None else whole.name
