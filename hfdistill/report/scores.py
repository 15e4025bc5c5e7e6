"""How well a model does, from the results, predictions and logs that an experiment left: nothing is run here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hfdistill.glue import METRICS
from hfdistill.report.calibration import confusion, expected_calibration_error, reliability
from hfdistill.report.contents import Kind, ModelReport, Score
from hfdistill.report.folders import Outcome, distillation_record, training_log
from hfdistill.report.results import CONTROL, ArmResult
from hfdistill.report.statistics import bootstrap, recovered_gap, retention

Array: TypeAlias = npt.NDArray[Any]
Runs: TypeAlias = Sequence[Mapping[str, Array]]

RESAMPLES = 1000
_NO_CURVE = ("_runtime", "_per_second", "_model_preparation_time")


def teacher_report(outcome: Outcome, teacher: ArmResult) -> ModelReport:
    """The teacher's scores and calibration; notes go to the outcome."""
    return _scored(outcome, teacher, "teacher", [outcome.teacher_logits] if outcome.teacher_logits else [])


def arm_report(outcome: Outcome, arm: ArmResult) -> ModelReport:
    """The scores, calibration and curves of the control or a student, beside teacher and control."""
    kind: Kind = "control" if arm.name == CONTROL else "student"
    report = _scored(outcome, arm, kind, outcome.predictions(arm.name))
    own = arm.summary(outcome.metric).mean
    control = next((other for other in outcome.arms if other.name == CONTROL and kind == "student"), None)
    if outcome.teacher is not None:
        best = outcome.teacher.summary(outcome.metric).mean
        report.retention = retention(own, best) if best > 0 else None
        lower = math.inf if control is None else control.summary(outcome.metric).mean
        report.recovered_gap = recovered_gap(own, lower, best) if best > lower else None
    if arm.difference is not None:
        report.difference = (arm.difference.difference, arm.difference.low, arm.difference.high)
    report.agreement, report.kl = (float(np.mean(values)) if values else None for values in (arm.agreement, arm.kl))
    folders = outcome.folders.get(arm.name, ())
    if folders:
        report.curves = curves(training_log(folders[0]))
        if not report.curves:
            outcome.notes.append(
                f"{outcome.name}: no training log of {arm.name!r}, so that it has no learning curves."
            )
    return report


def lone_report(outcome: Outcome, parameters: int) -> ModelReport:
    """What is known of a student that no experiment stands around: what its trainer noted."""
    ((name, (folder, *_)),) = outcome.folders.items()
    noted = distillation_record(folder).get("evaluation") or {}
    scores = {
        key.removeprefix("eval_"): Score(float(value), None, None, None, 1)
        for key, value in noted.items()
        if isinstance(value, int | float) and key != "eval_loss"
    }
    known = f"its scores are those of its own training, {sorted(scores)}" if scores else "its scores are not known"
    outcome.notes.append(
        f"{outcome.name}: a student without an experiment around it: {known}, and neither teacher nor control is "
        "here to compare it with."
    )
    return ModelReport(name, "student", scores, parameters, curves=curves(training_log(folder)))


def curves(log: Sequence[Mapping[str, Any]]) -> dict[str, tuple[tuple[int, ...], tuple[float, ...]]]:
    """What was logged over training, per name: steps and values; not speeds, nor the summary at the end.

    Losses ("loss", "loss/kd"), weights that change ("weight/kd") and evaluations ("eval_accuracy") are curves; points
    that are not finite are left out, as no axis holds them.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for entry in log:
        step = entry.get("step")
        for name, value in entry.items():
            shown = name == "loss" or name.startswith(("loss/", "weight/", "eval_"))
            usable = isinstance(value, int | float) and math.isfinite(value) and step is not None
            if shown and usable and not name.endswith(_NO_CURVE) and "train_runtime" not in entry:
                found.setdefault(name, []).append((int(step), float(value)))  # type: ignore[arg-type]
    return {name: (tuple(step for step, _ in at), tuple(value for _, value in at)) for name, at in found.items()}


def _scored(outcome: Outcome, arm: ArmResult, kind: Kind, runs: Runs) -> ModelReport:
    if outcome.evaluation and 0 < len(runs) < len(arm.metrics):
        outcome.notes.append(
            f"{outcome.name}: predictions of {len(runs)} of the {len(arm.metrics)} seeds of {arm.name!r} are here, so "
            "that its scores have no intervals."
        )
    names = sorted(arm.metrics[0], key=lambda name: name != outcome.metric)
    report = ModelReport(
        name=arm.name,
        kind=kind,
        scores={name: _score(outcome, arm, name, runs) for name in names},
        parameters=arm.parameters,
        bytes=arm.bytes,
        latencies=tuple(arm.latencies),
        training_seconds=float(np.mean(arm.seconds)) if arm.seconds else None,
    )
    split = outcome.split
    if split is not None and runs and _classifies(runs[0][split]):
        labels = outcome.evaluation[split]
        errors = [expected_calibration_error(run[split], labels) for run in runs]
        report.calibration_error = float(np.mean(errors))
        report.reliability = tuple(reliability(runs[0][split], labels))
        report.confusion = tuple(tuple(line) for line in confusion(runs[0][split], labels))
    return report


def _score(outcome: Outcome, arm: ArmResult, name: str, runs: Runs) -> Score:
    summary = arm.summary(name)
    recorded = [values[name] for values in arm.metrics]
    low, high = _interval(outcome, arm.name, name, recorded, runs) or (None, None)
    return Score(summary.mean, summary.deviation, low, high, summary.count)


def _interval(
    outcome: Outcome, arm: str, name: str, recorded: Sequence[float], runs: Runs
) -> tuple[float, float] | None:
    """The bootstrap interval of a metric over the rows of its split; None where it cannot be had."""
    split, _, short = name.rpartition("/")
    labels = outcome.evaluation.get(split or outcome.split or "")
    metric = _metric(short)
    if labels is None or len(runs) != len(recorded):
        return None  # the outcome notes why
    if metric is None:
        outcome.notes.append(f"{outcome.name}: the metric {short!r} is not known here, so that it has no interval.")
        return None
    predicted = [_predicted(run[split or outcome.split or ""]) for run in runs]
    found = [metric(run, labels) for run in predicted]
    if not np.allclose(found, recorded, rtol=0, atol=1e-6):
        outcome.notes.append(
            f"{outcome.name}: the predictions of {arm!r} give {name} {found}, its results say {list(recorded)}: they "
            "are of different runs, or the metric is another one. It is shown without an interval."
        )
        return None
    return bootstrap(metric, predicted, labels, samples=RESAMPLES)


def _metric(name: str) -> Callable[[Array, Array], float] | None:
    """From predicted and true classes (or numbers) to a figure; accuracy quickly, as thousands of times are needed."""
    if name == "accuracy":
        return lambda predicted, labels: float(np.mean(predicted == labels))
    return METRICS.get(name)


def _classifies(logits: Array) -> bool:
    return logits.ndim == 2 and logits.shape[1] > 1


def _predicted(logits: Array) -> Array:
    """Classes, or the numbers of a regression: (rows, K) -> (rows,)."""
    if _classifies(logits):
        classes: Array = logits.argmax(axis=1)
        return classes
    return logits.reshape(len(logits))
