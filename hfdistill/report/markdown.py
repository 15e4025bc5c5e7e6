"""A report as Markdown: the figures as tables that read as plain text too; the page has the plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hfdistill.report.calibration import most_confused
from hfdistill.report.contents import ModelReport, Report, Score, Similarity
from hfdistill.report.results import ResultRow, markdown_table


def as_markdown(report: Report) -> str:
    """Write a report as Markdown; sections without data are left out.

    Scores, retention, recovered gap, agreement and calibration error are in percent, differences in percentage points,
    KL in nats, times in milliseconds, sizes in MB of 10^6 bytes.
    """
    sections = [
        f"# {report.title}",
        _scores(report),
        _section("Cost", _filled([_cost(model) for model in report.models], "model")),
        _section("Latency", _latencies(report.models)),
        _section("Other metrics", _other_metrics(report)),
        _section("Most confused classes", _confused(report)),
        _section("End of training", _last_values(report.models)),
        *(_similarity(entry) for entry in report.similarities),
        _conditions(report),
        _section("What is missing", "\n".join(f"- {note}" for note in report.notes)),
    ]
    return "\n\n".join(section for section in sections if section)


def _scores(report: Report) -> str:
    rows = [_quality(model, report.metric) for model in report.models]
    legend = (
        "In percent, but KL in nats and differences in percentage points; ± is the standard deviation over seeds, "
        f"[low, high] the 95 % bootstrap interval over {f'{report.rows:,} ' if report.rows else ''}evaluation rows."
    )
    table = _filled(rows, "model")
    return _section("Scores", f"{table}\n\n{legend}" if table else "")


def _quality(model: ModelReport, metric: str) -> ResultRow:
    score = model.scores.get(metric)
    gain, low, high = model.difference or (None, None, None)
    return {
        "model": model.name,
        metric or "score": None if score is None else _score(score),
        "difference to control": None
        if gain is None or low is None or high is None
        else f"{gain * 100:+z.1f} [{low * 100:+z.1f}, {high * 100:+z.1f}]",
        "retention": _percent(model.retention),
        "recovered gap": _percent(model.recovered_gap),
        "agreement": _percent(model.agreement),
        "KL": None if model.kl is None else f"{model.kl:.3f}",
        "calibration error": _percent(model.calibration_error),
    }


def _cost(model: ModelReport) -> ResultRow:
    return {
        "model": model.name,
        "parameters": model.parameters,
        "size MB": None if model.bytes is None else f"{model.bytes / 1e6:,.1f}",
        "GFLOPs per row": None if model.flops is None else f"{model.flops / 1e9:,.3g}",
        "peak memory MB": None if model.peak_memory is None else f"{model.peak_memory / 1e6:,.0f}",
        "training s": None if model.training_seconds is None else f"{model.training_seconds:,.0f}",
    }


def _latencies(models: Sequence[ModelReport]) -> str:
    rows: list[ResultRow] = [
        {
            "model": model.name,
            "runtime": latency.runtime,
            "device": latency.device,
            "threads": latency.threads,
            "batch": latency.batch_size,
            "ms per batch": f"{latency.seconds * 1e3:,.2f}",
            "rows/s": f"{latency.samples_per_second:,.1f}",
        }
        for model in models
        for latency in model.latencies
    ]
    return markdown_table(rows, list(rows[0])) if rows else ""


def _other_metrics(report: Report) -> str:
    names = dict.fromkeys(name for model in report.models for name in model.scores if name != report.metric)
    rows: list[ResultRow] = [
        {"model": model.name, **{name: _score(model.scores[name]) if name in model.scores else None for name in names}}
        for model in report.models
    ]
    return markdown_table(rows, ["model", *names]) if names else ""


def _confused(report: Report) -> str:
    def name(index: int) -> str:
        return report.label_names[index] if index < len(report.label_names) else str(index)

    rows: list[ResultRow] = [
        {"model": model.name, "true class": name(true), "taken for": name(taken), "rows": count}
        for model in report.models
        for true, taken, count in most_confused(model.confusion or (), 5)
    ]
    return markdown_table(rows, list(rows[0])) if rows else ""


def _last_values(models: Sequence[ModelReport]) -> str:
    names = dict.fromkeys(name for model in models for name in model.curves)
    rows: list[ResultRow] = [
        {"model": model.name, **{name: model.curves[name][1][-1] if name in model.curves else None for name in names}}
        for model in models
        if model.curves
    ]
    return markdown_table(rows, ["model", *names]) if rows else ""


def _similarity(entry: Similarity) -> str:
    width = len(entry.values[0]) if entry.values else 0
    mapped = set(entry.mapped)
    rows: list[ResultRow] = [
        {
            "layer": str(ours),
            **{str(at): f"{value:.2f}{' *' if (ours, at) in mapped else ''}" for at, value in enumerate(line)},
        }
        for ours, line in enumerate(entry.values)
    ]
    legend = "Linear CKA; rows are the student's layers from the embeddings on, columns the teacher's."
    marked = " * marks pairs that the objective compared." if mapped else ""
    table = markdown_table(rows, ["layer", *map(str, range(width))])
    return _section(f"Layer similarity of {entry.student} and its teacher", f"{table}\n\n{legend}{marked}")


def _conditions(report: Report) -> str:
    parts = [f"Machine: {report.machine}"] if report.machine else []
    if report.versions:
        parts.append("Versions: " + ", ".join(f"{name} {number}" for name, number in report.versions.items()))
    if report.protocol:
        text = json.dumps(_without_arguments(report.protocol), indent=2, ensure_ascii=False)
        parts.append(f"```json\n{text}\n```\n\nreport.json holds the arguments of the training, too.")
    return _section("Protocol", "\n\n".join(parts))


def _without_arguments(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Without a hundred TrainingArguments, of which most are at their defaults."""
    return {
        name: _without_arguments(value) if isinstance(value, Mapping) else value
        for name, value in protocol.items()
        if name != "arguments"
    }


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _filled(rows: Sequence[ResultRow], first: str) -> str:
    """A table of the columns in which anything stands."""
    columns = [name for name in rows[0] if name == first or any(row[name] is not None for row in rows)] if rows else []
    return markdown_table(rows, columns) if len(columns) > 1 else ""


def _score(score: Score) -> str:
    spread = "" if score.deviation is None else f" ± {score.deviation * 100:.1f}"
    known = score.low is not None and score.high is not None
    interval = f" [{score.low * 100:z.1f}, {score.high * 100:z.1f}]" if known else ""  # type: ignore[operator]
    return f"{score.mean * 100:z.1f}{spread}{interval}"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share * 100:z.1f}"
