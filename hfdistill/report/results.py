"""A comparison of teacher, student, and the same student trained without distillation (the control).

Figures over several seeds, how sure a difference is, and the table that shows them all. The figures of one model come
from `measurement`, and their functions are offered here too. This module trains nothing and loads no data.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hfdistill.measurement import Throughput as Throughput
from hfdistill.measurement import agreement as agreement
from hfdistill.measurement import mean_kl as mean_kl
from hfdistill.measurement import parameter_count as parameter_count
from hfdistill.measurement import samples_per_second as samples_per_second
from hfdistill.measurement import size_on_disk as size_on_disk

Array: TypeAlias = npt.NDArray[Any]
Metric: TypeAlias = Callable[[Array, Array], float]
ResultRow: TypeAlias = Mapping[str, str | float | None]
"""One row of a table: column name -> cell, None where there is nothing to show."""

NO_VALUE = "–"


def retention(student_metric: float, teacher_metric: float) -> float:
    """Student's share of the teacher's metric: student / teacher, 1.0 when nothing is lost.

    Raises:
        ValueError: The teacher's metric is not above 0, so that a share of it says nothing.
    """
    if not teacher_metric > 0:
        raise ValueError(
            f"retention needs a teacher's metric above 0, got {teacher_metric}. A share of nothing, or of a negative "
            "score, misleads; report the two metrics themselves."
        )
    return student_metric / teacher_metric


def recovered_gap(student_metric: float, control_metric: float, teacher_metric: float) -> float:
    """Part of the way from control to teacher that distillation went: (student - control) / (teacher - control).

    Raises:
        ValueError: The teacher is not better than the control, so that there is no gap.
    """
    if not teacher_metric > control_metric:
        raise ValueError(
            f"recovered_gap needs a teacher better than the control, got {teacher_metric} (teacher) and "
            f"{control_metric} (control). Without a gap nothing can be recovered; report the metrics themselves."
        )
    return (student_metric - control_metric) / (teacher_metric - control_metric)


# How sure is it?


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1) of one figure over seeds; the latter None for a single seed."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Summarise one value per seed.

        Raises:
            ValueError: There is no value.
        """
        if not values:
            raise ValueError("a Summary needs at least one value, one per seed, got none. Run a seed first.")
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), deviation, len(values))

    def text(self, digits: int = 1, scale: float = 1.0) -> str:
        """Write "86.6 ± 0.4", or "86.6" for a single seed; `scale=100` writes a share in percent."""
        spread = "" if self.deviation is None else f" ± {self.deviation * scale:.{digits}f}"
        return f"{self.mean * scale:z.{digits}f}{spread}"


@dataclass(frozen=True)
class Interval:
    """A difference of two metrics and the interval that holds it with that confidence, in the metric's unit."""

    difference: float
    low: float
    high: float
    confidence: float = 0.95

    def text(self, digits: int = 1, scale: float = 1.0) -> str:
        """Write "+1.2 [+0.3, +2.1]"; `scale=100` writes percentage points."""
        difference, low, high = (f"{x * scale:+z.{digits}f}" for x in (self.difference, self.low, self.high))
        return f"{difference} [{low}, {high}]"


def paired_bootstrap(
    metric: Metric,
    predictions: npt.ArrayLike | Sequence[npt.ArrayLike],
    baseline_predictions: npt.ArrayLike | Sequence[npt.ArrayLike],
    references: npt.ArrayLike,
    samples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Difference metric(predictions) - metric(baseline) with its percentile bootstrap interval over evaluation rows.

    Every resample draws B rows with replacement, the same for both sides, and averages the metric over the runs of a
    side. The interval therefore tells what other evaluation rows would change; what other seeds would change is
    seen in the standard deviation over seeds. Koehn 2004, EMNLP, "Statistical Significance Tests for
    Machine Translation Evaluation", after Efron 1979.
    A metric that is undefined on a resample (NaN) counts as 0 there, and its warnings are silenced.

    Args:
        metric: From predictions and references of the same rows to a score. It is called samples x runs times: numpy
            takes microseconds, scikit-learn's metrics milliseconds.
        predictions: One array whose first axis is B rows, or a list or tuple of such arrays, one per seed.
        baseline_predictions: The same for the other side; the number of seeds may differ.
        references: B rows.
        samples: Number of resamples.
        seed: Of the resampling; the same seed draws the same rows.
        confidence: In (0, 1).

    Raises:
        ValueError: Rows do not match, or the metric of all rows is not finite.
    """
    if samples < 1 or not 0 < confidence < 1:
        raise ValueError(f"expected samples >= 1 and a confidence in (0, 1), got {samples} and {confidence}.")
    expected = np.asarray(references)
    runs = _runs(predictions, len(expected), "predictions")
    baseline = _runs(baseline_predictions, len(expected), "baseline_predictions")

    def difference(rows: slice | Array, undefined: float) -> float:
        scores = [np.array([metric(run[rows], expected[rows]) for run in side]) for side in (runs, baseline)]
        means = [np.where(np.isnan(side), undefined, side).mean() for side in scores]
        return float(means[0] - means[1])

    observed = difference(slice(None), math.nan)
    if not math.isfinite(observed):
        raise ValueError(
            f"expected a finite metric on all {len(expected)} rows, got a difference of {observed}. Around it no "
            "interval exists; look for NaN among the predictions, or use a metric that is defined on constant ones."
        )
    generator = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resampled = [difference(generator.integers(len(expected), size=len(expected)), 0.0) for _ in range(samples)]
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(observed, float(low), float(high), confidence)


def _runs(predictions: npt.ArrayLike | Sequence[npt.ArrayLike], rows: int, name: str) -> list[Array]:
    several = isinstance(predictions, list | tuple) and all(np.ndim(run) > 0 for run in predictions)
    runs = [np.asarray(run) for run in (predictions if several else [predictions])]  # type: ignore[union-attr]
    lengths = [len(run) for run in runs]
    if rows == 0 or not runs or set(lengths) != {rows}:
        raise ValueError(
            f"expected {name} of {rows} rows in every run, and at least one, got runs of {lengths}. Rows are drawn "
            "with their references; pass an array for one run, a list of arrays for several seeds."
        )
    return runs


# The table.


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
        record = json.loads(text)
        try:
            interval = record["difference"] and Interval(**record["difference"])
            return cls(**{**record, "difference": interval})
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"expected a JSON object that ArmResult.to_json wrote, got {text[:80]!r}: {error}"
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
