"""A report as one self-contained HTML page: no request leaves it, and it needs no script.

The words and their order stand in page.html, the look in page.css; here figures become text for people.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from hfdistill.report.calibration import most_confused
from hfdistill.report.contents import ModelReport, Report, Score, Similarity
from hfdistill.report.figures import MARKERS, latency_at, learning_curve, reliability, series_variable, trade_off
from hfdistill.report.finding import finding

_NO_VALUE = "–"
_SIGNS = dict(zip(MARKERS, "●■▲◆▼✚✖★", strict=True))
_LARGEST_MAP = 12  # classes: beyond it a heat map of numbers is no longer read, and the worst pairs are listed


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, a second line in small, and whether it is words rather than a number."""

    text: str
    range: str = ""
    words: bool = False


@dataclass(frozen=True)
class Grid:
    """A table: names of the columns, and rows whose first cell names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def as_html(report: Report) -> str:
    """Write a report as one HTML page that holds everything it shows.

    Sections without data are left out. Percent, percentage points, milliseconds, MB of 10^6 bytes; KL in nats.

    Raises:
        ImportError: matplotlib or jinja2 is not there.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError(
            "the report's page is filled in by jinja2, which is not installed. pip install 'hfdistill[report]', or "
            "write the report as Markdown and JSON alone."
        ) from error
    from markupsafe import Markup

    folder = files("hfdistill.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    template = environment.from_string(folder.joinpath("page.html").read_text(encoding="utf-8"))
    drawn = {name: _marked(value, Markup) for name, value in _drawings(report).items()}
    style = Markup(folder.joinpath("page.css").read_text(encoding="utf-8"))  # noqa: S704 our own file
    return template.render(style=style, **drawn, **_words(report)) + "\n"


def _marked(value: Any, markup: type[str]) -> Any:
    """The same with every drawing marked as SVG of our own, which is not to be escaped."""
    if isinstance(value, list):
        return [entry | {"drawing": markup(entry["drawing"])} for entry in value]
    return markup(value)


def _drawings(report: Report) -> dict[str, Any]:
    return {
        "trade_off": trade_off(report.models, report.metric),
        "curves": list(_curves(report.models)),
        "reliability": [
            {"message": _calibration_message(model), "drawing": reliability(model.name, position, model.reliability)}
            for position, model in enumerate(report.models)
            if any(entry.rows for entry in model.reliability)
        ],
    }


def _words(report: Report) -> dict[str, Any]:
    rows = f" over {report.rows:,} evaluation rows" if report.rows else ""
    return {
        "title": report.title,
        "finding": finding(report),
        "models": [
            {"name": model.name, "variable": series_variable(i), "sign": _SIGNS[MARKERS[i % len(MARKERS)]]}
            for i, model in enumerate(report.models)
        ],
        "scores": _filled([_quality(model, report.metric) for model in report.models]),
        "scores_caption": (
            f"Percent; differences in points, KL in nats. ± is the standard deviation over seeds, brackets the 95 % "
            f"bootstrap interval{rows}."
        ),
        "other_scores": _filled([_others(model, report.metric) for model in report.models]),
        "trade_off_message": _trade_off_message(report),
        "costs": _filled([_cost(model) for model in report.models]),
        "costs_caption": "Size: files that inference needs. Memory: peak of inference beyond the bare process.",
        "latencies": _latencies(report.models),
        "confusions": [_confusion(model, report) for model in report.models if model.confusion],
        "similarities": [_similarity(entry) for entry in report.similarities],
        "conditions": _conditions(report),
        "protocol": json.dumps(report.protocol, indent=2, ensure_ascii=False) if report.protocol else "",
        "notes": list(report.notes),
    }


# Tables.


def _filled(rows: Sequence[Mapping[str, Cell | None]]) -> Grid:
    """The rows as a table without the columns in which no row but its name says anything."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [name for name in names if any(row.get(name) is not None for row in rows)]
    if len(columns) < 2:
        return Grid([], [])
    cells = [[row.get(name) or Cell(_NO_VALUE) for name in columns] for row in rows]
    return Grid([name.replace(" %", "\N{NO-BREAK SPACE}%") for name in columns], cells)


def _quality(model: ModelReport, metric: str) -> dict[str, Cell | None]:
    score = model.scores.get(metric)
    gain = None if model.difference is None else [value * 100 for value in model.difference]
    return {
        "model": Cell(model.name),
        f"{metric} %": None if score is None else _score(score),
        "difference to control": None
        if gain is None
        else Cell(f"{gain[0]:+z.1f}", f"[{gain[1]:+z.1f}, {gain[2]:+z.1f}]"),
        "retention %": _percent(model.retention),
        "recovered gap %": _percent(model.recovered_gap),
        "agreement with teacher %": _percent(model.agreement),
        "KL to teacher": None if model.kl is None else Cell(f"{model.kl:.3f}"),
        "calibration error %": _percent(model.calibration_error),
    }


def _others(model: ModelReport, metric: str) -> dict[str, Cell | None]:
    others = {f"{name} %": _score(score) for name, score in model.scores.items() if name != metric}
    return {"model": Cell(model.name), **others}


def _score(score: Score) -> Cell:
    spread = "" if score.deviation is None else f" ± {score.deviation * 100:.1f}"
    interval = "" if score.low is None or score.high is None else f"[{score.low * 100:z.1f}, {score.high * 100:z.1f}]"
    return Cell(f"{score.mean * 100:z.1f}{spread}", interval)


def _cost(model: ModelReport) -> dict[str, Cell | None]:
    latency = latency_at(model)
    return {
        "model": Cell(model.name),
        "parameters": Cell(_count(model.parameters)),
        "operations per row": None if model.flops is None else Cell(f"{_count(model.flops)}FLOP"),
        "size MB": None if model.bytes is None else Cell(_digits(model.bytes / 1e6)),
        "peak memory MB": None if model.peak_memory is None else Cell(_digits(model.peak_memory / 1e6)),
        "latency ms": None if latency is None else Cell(_digits(latency.seconds * 1e3), f"batch {latency.batch_size}"),
        "training": None if model.training_seconds is None else Cell(_duration(model.training_seconds)),
    }


def _latencies(models: Sequence[ModelReport]) -> Grid:
    """One row for each model and runtime, one column for each batch size."""
    sizes = sorted({latency.batch_size for model in models for latency in model.latencies})
    rows: dict[tuple[str, str], dict[str, Cell | None]] = {}
    for model in models:
        for latency in model.latencies:
            runner = f"{latency.runtime}, {latency.device}, {latency.threads} thread{'s' * (latency.threads != 1)}"
            row = rows.setdefault(
                (model.name, runner), {"model": Cell(model.name), "run by": Cell(runner, words=True)}
            )
            row |= dict.fromkeys(_batch(size) for size in sizes if _batch(size) not in row)
            per_second = f"{_digits(latency.samples_per_second)} rows/s"
            row[_batch(latency.batch_size)] = Cell(f"{_digits(latency.seconds * 1e3)} ms", per_second)
    return _filled(list(rows.values()))


def _batch(size: int) -> str:
    return f"batch of {size:,}"


def _conditions(report: Report) -> list[tuple[str, str]]:
    given = {
        "metric": report.metric,
        "evaluation rows": f"{report.rows:,}" if report.rows else "",
        "machine": report.machine,
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    return [(name, value) for name, value in given.items() if value]


# Plots and maps.


def _curves(models: Sequence[ModelReport]) -> Iterable[dict[str, str]]:
    for term in dict.fromkeys(name for model in models for name in model.curves):
        drawn = {
            i: model.curves[term] for i, model in enumerate(models) if len(model.curves.get(term, ((), ()))[0]) > 1
        }
        if drawn:
            ends = "; ".join(f"{models[i].name} ends at {values[-1]:.3g}" for i, (_, values) in drawn.items())
            yield {"message": f"{term}: {ends}.", "drawing": learning_curve(term, drawn)}


def _trade_off_message(report: Report) -> str:
    said = [
        f"{model.name} {model.scores[report.metric].mean * 100:.1f} % in {_digits(latency.seconds * 1e3)} ms"
        for model in report.models
        if (latency := latency_at(model)) is not None and report.metric in model.scores
    ]
    return f"{'; '.join(said)}."


def _calibration_message(model: ModelReport) -> str:
    if model.calibration_error is None:
        return model.name
    return f"{model.name}: calibration error {model.calibration_error * 100:.1f} %"


def _confusion(model: ModelReport, report: Report) -> dict[str, Any]:
    matrix = model.confusion or ()
    names = [*report.label_names, *(str(k) for k in range(len(report.label_names), len(matrix)))]
    worst = [f"{names[true]} as {names[said]} ({rows:,})" for true, said, rows in most_confused(matrix, 5)]
    summary = f"most often {', '.join(worst)}" if worst else "no row is taken for another class"
    shown = len(matrix) <= _LARGEST_MAP
    return {
        "name": model.name,
        "open": model is report.models[0] or len(report.models) < 3,
        "summary": summary,
        "map": _confusion_map(model.name, matrix, names) if shown else None,
    }


def _confusion_map(name: str, matrix: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, Any]:
    rows = []
    for label, counts in zip(names, matrix, strict=True):
        total = max(1, sum(counts))
        cells = [{"text": f"{n:,}", "share": f"{n / total:.3f}", "marked": False} for n in counts]
        rows.append({"name": label, "cells": cells})
    caption = (
        f"{name}: rows of each class (down) by the class that the model chose (across); darker is a larger share."
    )
    return {"caption": caption, "corner": "class", "columns": names, "rows": rows}


def _similarity(entry: Similarity) -> dict[str, Any]:
    mapped = set(entry.mapped)
    rows = [
        {
            "name": f"student {i}",
            "cells": [
                {"text": f"{value:.2f}", "share": f"{min(1.0, max(0.0, value)):.3f}", "marked": (i, j) in mapped}
                for j, value in enumerate(values)
            ],
        }
        for i, values in enumerate(entry.values)
    ]
    columns = [f"teacher {j}" for j in range(len(entry.values[0]))] if entry.values else []
    caption = f"{entry.student}: linear CKA of its layers (down) with the teacher's (across)."
    if mapped:
        caption += " Outlined pairs were compared by its objective."
    return {"name": entry.student, "caption": caption, "corner": "layer", "columns": columns, "rows": rows}


# Numbers for people.


def _percent(share: float | None) -> Cell | None:
    return None if share is None else Cell(f"{share * 100:z.1f}")


def _count(number: float) -> str:
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g} "


def _digits(number: float) -> str:
    """Three significant digits, thousands in full."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}" if number else "0"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:,} min {rest:02d} s" if minutes else f"{seconds:.3g} s"
