"""The figures of a comparison: each one against a value worked out by hand, and the table that shows them."""

from __future__ import annotations

import json
import math
import time
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from hfdistill import measurement, report
from hfdistill.report import (
    ArmResult,
    Interval,
    Summary,
    markdown_table,
    paired_bootstrap,
    recovered_gap,
    results_table,
    retention,
)


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Share of equal labels."""
    return float(np.mean(predictions == references))


# Shares.


def test_the_report_offers_the_measurements():
    """One import serves a comparison; the name must be the function itself, not another one."""
    for name in ("agreement", "mean_kl", "parameter_count", "samples_per_second", "size_on_disk"):
        assert vars(report)[name] is vars(measurement)[name]


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


# The table.


def arm(name: str = "kd", **changes: object) -> ArmResult:
    """Make an arm of two seeds."""
    fields: dict[str, object] = {
        "name": name,
        "metrics": [{"accuracy": 0.86, "f1": 0.8}, {"accuracy": 0.88, "f1": 0.9}],
        "agreement": [0.90, 0.92],
        "kl": [0.1, 0.2],
        "difference": Interval(0.012, -0.003, 0.021),
        "parameters": 14350248,
        "bytes": 57_400_000,
        "samples_per_second": 1234.56,
        "seconds": [10.0, 11.5],
    }
    return ArmResult(**{**fields, **changes})


def teacher_arm() -> ArmResult:
    """Make a teacher of one seed, without figures that compare it to itself."""
    empty = {"agreement": [], "kl": [], "seconds": [], "difference": None, "samples_per_second": None}
    return arm("teacher", metrics=[{"accuracy": 0.9, "f1": 0.9}], **empty)


def cells(table: str) -> list[list[str]]:
    """Read a table's cells back, without the rule below the names."""
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    return [lines[0], *lines[2:]]


def test_an_arm_survives_json():
    """Arms are measured in separate runs and put into one table later."""
    for original in (arm(), teacher_arm()):
        assert ArmResult.from_json(original.to_json()) == original
    assert json.loads(arm().to_json())["difference"]["low"] == -0.003


@pytest.mark.parametrize("text", ["{}", "[1]", "3", "null", "not json"])
def test_json_that_is_no_arm_is_refused(text: str):
    """A wrong path is the usual cause; a KeyError would not say so."""
    with pytest.raises(ValueError, match=r"expected a JSON object|Expecting value"):
        ArmResult.from_json(text)


def test_json_with_an_unknown_field_is_refused():
    """A record of another version must not lose a figure silently."""
    with pytest.raises(ValueError, match="latency"):
        ArmResult.from_json(json.dumps({**json.loads(arm().to_json()), "latency": 1}))


def test_nan_is_not_written():
    """NaN is no JSON: other readers of the file would fail on it."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        arm(kl=[math.nan, 0.1]).to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": []}, "at least one seed"),
        ({"agreement": [0.9]}, "'agreement': 1"),
        ({"kl": [0.9] * 3}, "'kl': 3"),
        ({"metrics": [{"accuracy": 0.5}, {"f1": 0.5}]}, "the same metrics"),
    ],
)
def test_an_arm_whose_seeds_do_not_match_is_refused(changes: dict, message: str):
    """A deviation over other seeds than the metric's looks right in the table."""
    with pytest.raises(ValueError, match=message):
        arm(**changes)


def test_results_table():
    """Every cell by hand, as a reader of the README will see it."""
    control = arm("no teacher", difference=None, samples_per_second=None)
    header, teacher, student, alone = cells(results_table([arm(), control], "accuracy", teacher_arm()))
    assert header[1:4] == ["accuracy %", "difference to control [95% interval]", "retention %"]
    assert header[4:] == ["agreement %", "KL", "parameters", "size MB", "samples/s"]
    assert teacher == ["teacher", "90.0", "–", "–", "–", "–", "14,350,248", "57.4", "–"]
    assert student[:4] == ["kd", "87.0 ± 1.4", "+1.2 [-0.3, +2.1]", "96.7"]
    assert student[4:] == ["91.0 ± 1.4", "0.150 ± 0.071", "14,350,248", "57.4", "1,234.6"]
    assert alone[:4] == ["no teacher", "87.0 ± 1.4", "–", "96.7"]


def test_results_table_without_a_teacher_has_no_retention():
    """A share needs a whole: none given, or one at 0, leaves the cell empty instead of failing after all runs."""
    zero = teacher_arm()
    zero.metrics = [{"f1": 0.0}]
    for teacher in (None, zero):
        assert cells(results_table([arm()], "f1", teacher))[-1][1:4] == ["85.0 ± 7.1", "+1.2 [-0.3, +2.1]", "–"]


def test_results_table_refuses_what_one_column_cannot_hold():
    """A 90 % interval under the heading of a 95 % one would look narrower than it is; a misspelt metric is told."""
    with pytest.raises(ValueError, match=r"one confidence, got \[0.9, 0.95\]"):
        results_table([arm(), arm(difference=Interval(0, 0, 0, 0.9))], "accuracy")
    with pytest.raises(ValueError, match=r"no metric 'acuracy'; it has \['accuracy', 'f1'\]"):
        results_table([arm()], "acuracy")


def test_markdown_table_is_aligned_and_escaped():
    """It is read as plain text in logs as often as rendered; a bar in a cell would shift every cell after it."""
    rows = [{"name": "a|b", "count": 12345, "share": 0.123456}, {"name": "c", "count": None, "share": 12.0}]
    assert markdown_table(rows, ["name", "count", "share"]).splitlines() == [
        "| name |  count |  share |",
        "| ---- | -----: | -----: |",
        r"| a\|b | 12,345 | 0.1235 |",
        "| c    |      – |     12 |",
    ]


def test_markdown_table_of_nothing_is_a_header():
    """A table without rows is still a table."""
    assert markdown_table([], ["a"]).splitlines() == ["| a   |", "| --- |"]


def test_markdown_table_refuses_a_misspelt_column():
    """It would be an empty column that nobody misses."""
    with pytest.raises(ValueError, match=r"row 1 lacks \['b'\]"):
        markdown_table([{"a": 1, "b": 2}, {"a": 1}], ["a", "b"])
