"""Figures over seeds and rows: shares, deviations and intervals, each against a value worked out by hand or theory."""

from __future__ import annotations

import math
import time
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from hfdistill.report import Interval, Summary, bootstrap, paired_bootstrap, recovered_gap, retention


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Share of equal labels."""
    return float(np.mean(predictions == references))


# Shares.


def test_retention_and_recovered_gap():
    """By hand: 45 of 50 are 90 %; from 40 to 50 the student went halfway."""
    assert retention(0.45, 0.50) == pytest.approx(0.9)
    assert recovered_gap(0.45, 0.40, 0.50) == pytest.approx(0.5)
    assert recovered_gap(0.35, 0.40, 0.50) == pytest.approx(-0.5)


@pytest.mark.parametrize("teacher", [0.0, -0.1, math.nan])
def test_retention_of_nothing_is_refused(teacher: float):
    """A teacher at Matthews 0 would give infinity, one below 0 a flattering negative over negative."""
    with pytest.raises(ValueError, match="above 0"):
        retention(-0.2, teacher)


@pytest.mark.parametrize("teacher", [0.4, 0.3])
def test_a_gap_that_is_none_is_refused(teacher: float):
    """With the teacher below the control, the sign turns round: the worse student recovers more."""
    with pytest.raises(ValueError, match="better than the control"):
        recovered_gap(0.35, 0.4, teacher)


# Seeds and intervals.


def test_summary_over_seeds():
    """The sample deviation: 1, 2, 3 have 1, not the population's 0.82 that numpy gives by default."""
    assert Summary.of([1.0, 2.0, 3.0]) == Summary(mean=2.0, deviation=1.0, count=3)
    assert Summary.of([0.862, 0.866, 0.870]).text(scale=100) == "86.6 ± 0.4"
    assert Summary.of([0.1234]).text(digits=3) == "0.123"


def test_one_seed_has_no_deviation():
    """A spread of 0.0 would claim that nothing varies."""
    assert Summary.of([0.5]) == Summary(0.5, None, 1)
    assert "±" not in Summary.of([0.5]).text()
    with pytest.raises(ValueError, match="at least one"):
        Summary.of([])


def test_text_has_no_negative_zero():
    """A difference of -0.0 reads as a loss."""
    assert Summary.of([-0.0001]).text() == "0.0"
    assert Interval(-0.0001, -0.02, 0.03).text(scale=100) == "+0.0 [-2.0, +3.0]"


def test_bootstrap_of_equal_predictions_is_zero():
    """The rows are paired: an unpaired bootstrap would show a wide interval here."""
    predictions, references = np.random.default_rng(0).integers(0, 2, (2, 100))
    interval = paired_bootstrap(accuracy, predictions, predictions, references, samples=200)
    assert (interval.difference, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_bootstrap_of_accuracy_agrees_with_theory():
    """Per row the difference is +1, 0 or -1; for many rows its mean is normal with a known standard error."""
    rows = 2000
    gains = np.random.default_rng(0).choice([1, 0, -1], p=[0.2, 0.7, 0.1], size=rows)
    references = np.ones(rows, dtype=int)
    student, control = np.where(gains < 0, 0, 1), np.where(gains > 0, 0, 1)
    interval = paired_bootstrap(accuracy, student, control, references, confidence=0.9)
    half = stats.norm.ppf(0.95) * gains.std() / math.sqrt(rows)
    assert interval.difference == pytest.approx(gains.mean())
    assert (interval.low, interval.high) == pytest.approx((gains.mean() - half, gains.mean() + half), abs=0.1 * half)
    assert interval.confidence == 0.9


def test_bootstrap_averages_over_seeds():
    """The interval belongs to the mean over seeds; the two sides may have different numbers of them."""
    random = np.random.default_rng(3)
    references = random.integers(0, 2, 60)
    first, second, control = random.integers(0, 2, (3, 60))
    both = paired_bootstrap(accuracy, [first, second], control, references, samples=300)
    expected = (accuracy(first, references) + accuracy(second, references)) / 2 - accuracy(control, references)
    assert both.difference == pytest.approx(expected)
    twice = paired_bootstrap(accuracy, [first, first], [control] * 3, references, samples=300)
    once = paired_bootstrap(accuracy, first, control, references, samples=300)
    assert (twice.difference, twice.low, twice.high) == pytest.approx((once.difference, once.low, once.high))
    assert both.high - both.low < once.high - once.low


def test_bootstrap_is_repeatable():
    """A published interval must come out again; another seed shows how much of it is chance."""
    student, control, references = np.random.default_rng(4).integers(0, 2, (3, 50))
    runs = [paired_bootstrap(accuracy, student, control, references, samples=100, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_bootstrap_takes_lists_and_logits():
    """One run as a plain list is not a list of runs, and the rows of logits stay together."""
    references = [0, 1, 1, 0]
    plain = paired_bootstrap(accuracy, [0, 1, 1, 1], [1, 1, 1, 1], references, samples=50)
    logits = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    by_argmax = paired_bootstrap(
        lambda rows, expected: accuracy(rows.argmax(1), expected),
        logits,
        np.eye(2)[[1, 1, 1, 1]],
        references,
        samples=50,
    )
    assert plain == by_argmax
    assert plain.difference == 0.25


@pytest.mark.parametrize("metric", [matthews_corrcoef, f1_score, lambda p, r: stats.pearsonr(p, r)[0]])
def test_degenerate_resamples_count_as_zero_without_a_warning(metric):
    """With 4 rows many resamples hold one class: the libraries warn, give 0, or give NaN (scipy)."""
    student, control, references = np.array([0, 0, 0, 1]), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    interval = paired_bootstrap(metric, student, control, references, samples=60)
    assert math.isfinite(interval.low)
    assert interval.low <= interval.difference <= interval.high


def test_bootstrap_leaves_the_warnings_filter_as_it_was():
    """Silence during the resampling must not silence the rest of the run."""
    before = list(warnings.filters)
    paired_bootstrap(accuracy, [0, 1], [1, 1], [0, 1], samples=5)
    assert warnings.filters == before


def test_interval_of_one_metric_agrees_with_theory():
    """Accuracy over many rows is normal with standard error √(p (1 - p) / n)."""
    rows, share = 2000, 0.8
    predictions, references = np.ones(rows, dtype=int), (np.arange(rows) < share * rows).astype(int)
    low, high = bootstrap(accuracy, predictions, references, confidence=0.9)
    half = stats.norm.ppf(0.95) * math.sqrt(share * (1 - share) / rows)
    assert (low, high) == pytest.approx((share - half, share + half), abs=0.1 * half)


def test_interval_of_one_metric_is_the_difference_to_nothing():
    """Both kinds of interval draw the same rows: against a baseline that is always wrong they are one."""
    random = np.random.default_rng(5)
    first, second, references = random.integers(0, 2, (3, 80))
    wrong = np.full(80, -1)
    paired = paired_bootstrap(accuracy, [first, second], wrong, references, samples=200, seed=3)
    assert bootstrap(accuracy, [first, second], references, samples=200, seed=3) == (paired.low, paired.high)


def test_interval_of_one_metric_refuses_what_the_difference_refuses():
    """One door for bad input: rows that do not match, a metric that is not finite, a confidence in percent."""
    for arguments, message in (
        ((accuracy, [0, 1, 1], [0, 1]), "expected predictions of 2 rows"),
        ((lambda p, r: math.nan, [0, 1], [0, 1]), "finite metric on all 2 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            bootstrap(*arguments)
    with pytest.raises(ValueError, match="samples >= 1 and a confidence"):
        bootstrap(accuracy, [0], [0], confidence=95)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_undefined_metric_on_all_rows_is_refused(value: float):
    """Counted as 0, a diverged run would enter the table as a number."""
    with pytest.raises(ValueError, match="finite metric on all 2 rows"):
        paired_bootstrap(lambda p, r: value if p[0] else 1.0, [1, 1], [0, 0], [0, 1], samples=5)


@pytest.mark.parametrize(
    ("student", "control", "references", "message"),
    [
        ([0, 1, 1], [0, 1], [0, 1], "expected predictions of 2 rows"),
        ([0, 1], [[0, 1], [0, 1, 1]], [0, 1], r"baseline_predictions of 2 rows .* runs of \[2, 3\]"),
        ([], [0, 1], [0, 1], "at least one"),
        ([], [], [], "at least one"),
    ],
)
def test_rows_that_do_not_match_are_refused(student: list, control: list, references: list, message: str):
    """Indices drawn for one side would read past, or miss rows of, the other."""
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(accuracy, student, control, references)


@pytest.mark.parametrize("options", [{"samples": 0}, {"confidence": 0.0}, {"confidence": 95}])
def test_meaningless_bootstrap_options_are_refused(options: dict):
    """A confidence of 95 instead of 0.95 must not become some quantile."""
    with pytest.raises(ValueError, match="samples >= 1 and a confidence"):
        paired_bootstrap(accuracy, [0], [0], [0], **options)


def test_bootstrap_of_a_real_size_is_fast():
    """872 rows (SST-2), 3 seeds a side, 2,000 resamples: nobody waits for an interval that takes minutes."""
    sides = np.random.default_rng(0).integers(0, 2, (7, 872))
    start = time.perf_counter()
    paired_bootstrap(accuracy, list(sides[:3]), list(sides[3:6]), sides[6])
    assert time.perf_counter() - start < 5
