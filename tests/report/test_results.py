"""What was measured on the arms of a comparison: its record as JSON, and the table that shows it, cell by cell."""

from __future__ import annotations

import json
import math

import pytest

from hfdistill import likeness, measurement, report
from hfdistill.report import ArmResult, Interval, Latency, markdown_table, results_table


def test_the_report_offers_the_measurements():
    """One import serves a comparison; the name must be the function itself, not another one."""
    for name in ("latencies", "parameter_count", "samples_per_second", "size_on_disk"):
        assert vars(report)[name] is vars(measurement)[name]
    for name in ("agreement", "mean_kl"):
        assert vars(report)[name] is vars(likeness)[name]


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
    timed = arm(latencies=[Latency("torch", 8, 0.5, (0.4, 0.5, 0.6), "cpu", 1)])
    for original in (arm(), teacher_arm(), timed):
        assert ArmResult.from_json(original.to_json()) == original
    assert json.loads(arm().to_json())["difference"]["low"] == -0.003


def test_an_arm_of_an_earlier_version_is_read():
    """results.json of before had no latencies, and its runs took hours."""
    record = json.loads(arm().to_json())
    del record["latencies"]
    assert ArmResult.from_json(json.dumps(record)) == arm()


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
