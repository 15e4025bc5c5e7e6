"""Figures over seeds and rows: shares of the teacher's metric, mean and deviation, and how sure a figure is.

Nothing here knows what a metric measures; it is a function from predictions and references to a number.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Metric: TypeAlias = Callable[[Array, Array], float]
Score: TypeAlias = Callable[[slice | Array, float], float]
"""From evaluation rows, and what an undefined value counts as there, to a figure."""


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
    expected = np.asarray(references)
    runs = _runs(predictions, len(expected), "predictions")
    baseline = _runs(baseline_predictions, len(expected), "baseline_predictions")
    ours, theirs = _mean_score(metric, runs, expected), _mean_score(metric, baseline, expected)
    found = _percentiles(lambda *rows: ours(*rows) - theirs(*rows), len(expected), samples, seed, confidence)
    return Interval(*found, confidence)


def bootstrap(
    metric: Metric,
    predictions: npt.ArrayLike | Sequence[npt.ArrayLike],
    references: npt.ArrayLike,
    samples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval, over evaluation rows, of one metric averaged over seeds: (low, high).

    How it resamples, and what the interval does and does not tell: see `paired_bootstrap`, which two models are to be
    compared with, as their intervals may overlap where their difference is sure. Efron 1979, Annals of Statistics 7.

    Args:
        metric: See `paired_bootstrap`.
        predictions: See `paired_bootstrap`.
        references: See `paired_bootstrap`.
        samples: See `paired_bootstrap`.
        seed: See `paired_bootstrap`.
        confidence: See `paired_bootstrap`.

    Raises:
        ValueError: As in `paired_bootstrap`.
    """
    expected = np.asarray(references)
    runs = _runs(predictions, len(expected), "predictions")
    _, low, high = _percentiles(_mean_score(metric, runs, expected), len(expected), samples, seed, confidence)
    return low, high


def _mean_score(metric: Metric, runs: Sequence[Array], references: Array) -> Score:
    """The metric of drawn rows, averaged over runs; where it is undefined, a number that is given."""

    def score(rows: slice | Array, undefined: float) -> float:
        values = np.array([metric(run[rows], references[rows]) for run in runs])
        return float(np.where(np.isnan(values), undefined, values).mean())

    return score


def _percentiles(score: Score, count: int, samples: int, seed: int, confidence: float) -> tuple[float, float, float]:
    """The score of all rows, and the quantiles of its resamples that hold `confidence` between them."""
    if samples < 1 or not 0 < confidence < 1:
        raise ValueError(f"expected samples >= 1 and a confidence in (0, 1), got {samples} and {confidence}.")
    observed = score(slice(None), math.nan)
    if not math.isfinite(observed):
        raise ValueError(
            f"expected a finite metric on all {count} rows, got {observed}. Around it no interval exists; look for "
            "NaN among the predictions, or use a metric that is defined on constant ones."
        )
    generator = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resampled = [score(generator.integers(count, size=count), 0.0) for _ in range(samples)]
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return observed, float(low), float(high)


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
