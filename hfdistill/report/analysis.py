"""A report from the folders that recipes and trainers left: read, compared, measured, and written in three forms."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np

from hfdistill.measurement import machine_name, parameter_count, size_on_disk
from hfdistill.report.contents import Kind, ModelReport, Report, Similarity
from hfdistill.report.costs import measure as measure_models
from hfdistill.report.costs import running_device
from hfdistill.report.folders import Outcome, distillation_record, exported_latencies, read_outcome
from hfdistill.report.markdown import as_markdown
from hfdistill.report.record import plain, to_json
from hfdistill.report.results import ArmResult
from hfdistill.report.scores import arm_report, lone_report, teacher_report
from hfdistill.saved_model import load_saved


def analyse(folders: Sequence[Path | str], *, measure: bool = True, sizes: Sequence[int] = (1, 8, 32)) -> Report:
    """Compare what lies in recipes' output folders or students' folders; several become one report.

    Models of the same name in several folders are told apart by their folder's name; a teacher that gave the same
    answers in several is one. What is missing is said in the report's notes.

    Args:
        folders: OUT of a recipe (with results.json), or the folder of one student.
        measure: whether models are loaded and run: operations, latency, memory, layer similarity. Without it
            latencies are those that the recipe measured.
        sizes: of the batches that are timed.

    Raises:
        ValueError: no folder; one that is neither; folders whose evaluation rows, classes or metrics differ, so that
            their figures cannot stand in one table.
    """
    if not folders:
        raise ValueError("expected the folder of a recipe or of a student, got none: there is nothing to report on.")
    names = _distinct([Path(folder).resolve() for folder in folders])
    outcomes = [read_outcome(folder, name) for folder, name in zip(folders, names, strict=True)]
    _check_comparable(outcomes)
    parts = [
        _part(outcome, _told_elsewhere(place, outcomes), measure, sizes) for place, outcome in enumerate(outcomes)
    ]
    models, similarities = _joined(outcomes, parts)
    measured = any(model.flops is not None for model in models)
    rows = next((len(labels) for outcome in outcomes for labels in _labels(outcome)), 0)
    notes = [note for outcome in outcomes for note in outcome.notes]
    if not measure:
        notes.append("Nothing was measured for this report: no operations, memory or layer similarity was asked for.")
    return Report(
        title=_title(outcomes),
        metric=_metric(outcomes, models),
        models=models,
        label_names=next((tuple(outcome.labels) for outcome in outcomes if outcome.labels), ()),
        similarities=tuple(similarities),
        rows=rows,
        machine=machine_name(running_device()) if measured else _recorded_machine(outcomes),
        versions={name: version(name) for name in ("hfdistill", "torch", "transformers")}
        | {"python": platform.python_version()},
        protocol=plain(
            outcomes[0].protocol if len(outcomes) == 1 else {outcome.name: outcome.protocol for outcome in outcomes}
        ),
        notes=tuple(dict.fromkeys(notes)),
    )


def write_report(
    folders: Sequence[Path | str], output: Path | str, *, measure: bool = True, sizes: Sequence[int] = (1, 8, 32)
) -> Report:
    """Analyse folders and write report.md, report.json and report.html.

    Args:
        folders: see `analyse`.
        output: folder to write into; made if it is not there.
        measure: see `analyse`.
        sizes: see `analyse`.

    Raises:
        ValueError: see `analyse`.
        ImportError: matplotlib, which draws the page, is not installed; the other two files are written all the same.
    """
    report = analyse(folders, measure=measure, sizes=sizes)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.md").write_text(as_markdown(report) + "\n", encoding="utf-8")
    (output / "report.json").write_text(to_json(report) + "\n", encoding="utf-8")
    from hfdistill.report.page import as_html  # needs an optional library

    (output / "report.html").write_text(as_html(report), encoding="utf-8")
    return report


@dataclass
class _Part:
    """The models of one folder, by the names that they have there."""

    teacher: ModelReport | None
    arms: dict[str, ModelReport]
    similarities: list[Similarity]


def _part(outcome: Outcome, elsewhere: Sequence[ArmResult], measure: bool, sizes: Sequence[int]) -> _Part:
    if outcome.teacher is None:
        ((name, (folder, *_)),) = outcome.folders.items()
        arms = {name: replace(lone_report(outcome, _parameters(folder)), bytes=size_on_disk(folder))}
        part = _Part(None, arms, [])
    else:
        arms = {arm.name: arm_report(outcome, arm) for arm in outcome.arms if arm not in elsewhere}
        part = _Part(teacher_report(outcome, outcome.teacher), arms, [])
    if measure:
        part.similarities = measure_models(outcome, part.teacher, part.arms, sizes)
    for name, report in part.arms.items():
        for folder in outcome.folders.get(name, ())[:1]:
            exported, machine = exported_latencies(folder)
            report.latencies = (*report.latencies, *exported)
            if exported:
                place = f" ({machine})" if machine else ""
                outcome.notes.append(
                    f"{outcome.name}: latencies of {name!r} as ONNX were measured when it was exported{place}."
                )
    return part


def _told_elsewhere(place: int, outcomes: Sequence[Outcome]) -> list[ArmResult]:
    """Arms whose model is not in this folder and that another one tells of: the control, beside each student."""
    outcome = outcomes[place]
    others = [(other, at < place) for at, other in enumerate(outcomes) if at != place]
    return [
        arm
        for arm in outcome.arms
        if not outcome.folders.get(arm.name)
        and any(arm in other.arms and (earlier or other.folders.get(arm.name)) for other, earlier in others)
    ]


def _parameters(folder: Path) -> int:
    noted = distillation_record(folder).get("student") or {}
    return int(noted["parameters"]) if "parameters" in noted else parameter_count(load_saved(folder))


def _joined(outcomes: Sequence[Outcome], parts: Sequence[_Part]) -> tuple[list[ModelReport], list[Similarity]]:
    """The models of all folders, teachers first, then controls; names that occur twice get their folder's in front."""
    teachers = {
        index: part.teacher
        for index, part in enumerate(parts)
        if part.teacher is not None
        and not any(_same_teacher(outcomes[index], other) for other in outcomes[:index] if other.teacher is not None)
    }
    given = Counter([name for part in parts for name in part.arms] + [teacher.name for teacher in teachers.values()])
    models: list[ModelReport] = []
    similarities: list[Similarity] = []

    def named(index: int, name: str) -> str:
        return f"{outcomes[index].name}/{name}" if given[name] > 1 else name

    models += [replace(teacher, name=named(index, teacher.name)) for index, teacher in teachers.items()]
    for index, part in enumerate(parts):
        models += [replace(report, name=named(index, name)) for name, report in part.arms.items()]
        similarities += [replace(entry, student=named(index, entry.student)) for entry in part.similarities]
    order = {kind: place for place, kind in enumerate(get_args(Kind))}
    return sorted(models, key=lambda model: order[model.kind]), similarities


def _same_teacher(first: Outcome, second: Outcome) -> bool:
    ours, theirs = first.teacher_logits, second.teacher_logits
    if not ours or not theirs:
        return first.teacher == second.teacher
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[split], theirs[split]) for split in ours)


def _check_comparable(outcomes: Sequence[Outcome]) -> None:
    compared = [outcome for outcome in outcomes if outcome.teacher is not None]
    for first, second in pairwise(compared):
        if first.metric != second.metric:
            raise ValueError(
                f"{first.name} is scored by {first.metric!r}, {second.name} by {second.metric!r}: one table cannot "
                "compare them. Write a report of each."
            )
        known = first.evaluation and second.evaluation
        same = [np.array_equal(*pair) for pair in zip(_labels(first), _labels(second), strict=False)]
        if (known and not all(same)) or (first.labels and second.labels and first.labels != second.labels):
            raise ValueError(
                f"{first.name} and {second.name} were evaluated on other rows: their labels differ. Figures over "
                "different rows cannot be compared; write a report of each."
            )
        if not known:
            second.notes.append(
                f"Whether {first.name} and {second.name} were evaluated on the same rows is not known."
            )


def _labels(outcome: Outcome) -> list[Any]:
    return [] if outcome.split is None else [outcome.evaluation[outcome.split]]


def _distinct(folders: Sequence[Path]) -> list[str]:
    """The last part of each folder's path, or as many as tell them apart."""
    if len(set(folders)) < len(folders):
        raise ValueError(f"expected different folders, got {[str(folder) for folder in folders]}: one is there twice.")
    for count in range(1, max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _metric(outcomes: Sequence[Outcome], models: Sequence[ModelReport]) -> str:
    """What stands for the task; of students alone the first score that one of them has."""
    named = (outcome.metric for outcome in outcomes if outcome.metric)
    return next(named, next((name for model in models for name in model.scores), ""))


def _title(outcomes: Sequence[Outcome]) -> str:
    data = [(outcome.protocol.get("data") or {}).get("name") for outcome in outcomes]
    known = dict.fromkeys(str(name) for name in data if name)
    return f"Distillation on {', '.join(known) or ', '.join(outcome.name for outcome in outcomes)}"


def _recorded_machine(outcomes: Sequence[Outcome]) -> str:
    """Where the recorded latencies were measured, as the runs noted it."""
    noted = []
    for outcome in outcomes:
        folder = next((folder for folders in outcome.folders.values() for folder in folders), None)
        trained = distillation_record(folder).get("machine") if folder else None
        noted.append(trained or outcome.protocol.get("machine"))
    return "; ".join(dict.fromkeys(str(machine) for machine in noted if machine))
