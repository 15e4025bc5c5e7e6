"""What was measured on teacher, control (the student trained without distillation) and students, and their table.

This module trains nothing and loads no data; how sure a figure is comes from `statistics`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from hfdistill.measurement import Latency
from hfdistill.report.statistics import Interval, Summary, retention

ResultRow: TypeAlias = Mapping[str, str | float | None]
"""One row of a table: column name -> cell, None where there is nothing to show."""

CONTROL = "control"
"""Name of the arm without distillation."""

NO_VALUE = "–"


@dataclass
class ArmResult:
    """One arm of a comparison: everything measured on it, one entry per seed where a seed can change it.

    Args:
        name: Of the arm, as the table shows it.
        metrics: Per seed, metric name -> value; shares, not percent.
        agreement: Per seed, with the teacher, as a share; empty for the teacher itself.
        kl: Per seed, mean KL(teacher || student) in nats; empty for the teacher itself.
        difference: To the control, of the metric that the table shows; None for the control and where unknown.
        parameters: Number of parameters.
        bytes: Size on disk for inference.
        samples_per_second: Of inference; None if not measured.
        seconds: Per seed, wall time of training; empty if not trained here.
        latencies: Of inference, by batch size; empty if not measured.

    Raises:
        ValueError: There is no seed, or the lists do not match.
    """

    name: str
    metrics: list[dict[str, float]]
    agreement: list[float]
    kl: list[float]
    difference: Interval | None
    parameters: int
    bytes: int
    samples_per_second: float | None
    seconds: list[float]
    latencies: list[Latency] = field(default_factory=list)

    def __post_init__(self) -> None:
        seeds = len(self.metrics)
        lengths = {"agreement": len(self.agreement), "kl": len(self.kl), "seconds": len(self.seconds)}
        if seeds == 0 or any(length not in (0, seeds) for length in lengths.values()):
            raise ValueError(
                f"arm {self.name!r}: expected metrics of at least one seed, and as many entries or none in the other "
                f"lists, got {seeds} seeds and {lengths}. A mean over other seeds than the metric's would mislead."
            )
        if any(values.keys() != self.metrics[0].keys() for values in self.metrics):
            raise ValueError(f"arm {self.name!r}: expected the same metrics of every seed, got {self.metrics}.")

    def summary(self, metric: str) -> Summary:
        """Summarise one metric over the seeds.

        Raises:
            ValueError: The arm has no such metric.
        """
        if metric not in self.metrics[0]:
            raise ValueError(f"arm {self.name!r} has no metric {metric!r}; it has {sorted(self.metrics[0])}.")
        return Summary.of([values[metric] for values in self.metrics])

    def to_json(self) -> str:
        """Write the arm as a JSON object; `from_json` gives an equal arm back."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ArmResult:
        """Read what `to_json` wrote.

        Raises:
            ValueError: It is not JSON, or not an arm's.
        """
        return cls.from_record(json.loads(text))

    @classmethod
    def from_record(cls, record: Any) -> ArmResult:
        """Read what `dataclasses.asdict` and JSON made of an arm, as it stands in results.json.

        Raises:
            ValueError: It is not an arm's.
        """
        try:
            interval = record["difference"] and Interval(**record["difference"])
            latencies = [Latency.from_record(latency) for latency in record.get("latencies", ())]
            return cls(**{**record, "difference": interval, "latencies": latencies})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"expected a JSON object with the fields of an ArmResult, got {str(record)[:80]}: {error}"
            ) from error


def results_table(arms: Sequence[ArmResult], metric: str, teacher: ArmResult | None = None) -> str:
    """Write the arms as a Markdown table, the teacher first: "86.6 ± 0.4" is mean ± standard deviation over seeds.

    Metric, retention and agreement are in percent, differences in percentage points with their interval, KL in nats,
    size in MB of 10^6 bytes. Retention is the share of the teacher's mean metric.

    Args:
        arms: Students and the control, in the order of the rows.
        metric: Name of the metric shown.
        teacher: Its row has no difference, retention, agreement and KL of its own.

    Raises:
        ValueError: An arm lacks the metric, or the intervals have different confidences.
    """
    confidences = {arm.difference.confidence for arm in arms if arm.difference is not None}
    if len(confidences) > 1:
        raise ValueError(f"expected intervals of one confidence, got {sorted(confidences)}: a column holds one kind.")
    interval = "".join(f" [{confidence * 100:g}% interval]" for confidence in confidences)
    reference = None if teacher is None else teacher.summary(metric).mean
    rows = [] if teacher is None else [_arm_cells(teacher, metric, None)]
    rows += [_arm_cells(arm, metric, reference) for arm in arms]
    columns = ["arm", f"{metric} %", f"difference to control{interval}", "retention %", "agreement %", "KL"]
    columns += ["parameters", "size MB", "samples/s"]
    return markdown_table([dict(zip(columns, row, strict=True)) for row in rows], columns)


def markdown_table(rows: Sequence[ResultRow], columns: Sequence[str]) -> str:
    """Write rows as a Markdown table, padded so that it reads as plain text too; columns of numbers to the right.

    Integers get thousands separators, floats four significant digits, None a dash; strings stay as they are.

    Raises:
        ValueError: A row lacks a column.
    """
    for number, row in enumerate(rows):
        if missing := [name for name in columns if name not in row]:
            raise ValueError(
                f"row {number} lacks {missing}; it has {list(row)}. Give None for a cell without a value."
            )
    cells = [[_cell(row[name]) for name in columns] for row in rows]
    right = [_is_numeric([line[i] for line in cells]) for i in range(len(columns))]
    lines = [[name.replace("|", r"\|") for name in columns], *cells]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(columns))]
    rule = ["-" * (width - 1) + (":" if flush else "-") for width, flush in zip(widths, right, strict=True)]
    return "\n".join(_line(line, widths, right) for line in [lines[0], rule, *lines[1:]])


def _arm_cells(arm: ArmResult, metric: str, teacher_metric: float | None) -> list[str | float | None]:
    score = arm.summary(metric)
    share = retention(score.mean, teacher_metric) if teacher_metric is not None and teacher_metric > 0 else None
    return [
        arm.name,
        score.text(scale=100),
        arm.difference.text(scale=100) if arm.difference else None,
        None if share is None else f"{share * 100:.1f}",
        Summary.of(arm.agreement).text(scale=100) if arm.agreement else None,
        Summary.of(arm.kl).text(digits=3) if arm.kl else None,
        arm.parameters,
        f"{arm.bytes / 1e6:.1f}",
        None if arm.samples_per_second is None else f"{arm.samples_per_second:,.1f}",
    ]


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (
        text.rjust(width) if flush else text.ljust(width)
        for text, width, flush in zip(cells, widths, right, strict=True)
    )
    return f"| {' | '.join(padded)} |"


def _cell(value: str | float | None) -> str:
    if value is None:
        return NO_VALUE
    if isinstance(value, str):
        return value.replace("|", r"\|")
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _is_numeric(cells: Sequence[str]) -> bool:
    shown = [text for text in cells if text != NO_VALUE]
    return bool(shown) and all(text.lstrip("+-")[:1].isdigit() for text in shown)
