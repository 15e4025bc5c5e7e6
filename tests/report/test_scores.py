"""Figures from predictions, results and logs: which rows, seeds and metrics they are of, and what is left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report.output_folder import SPLIT, write_output

from hfdistill.glue import METRICS
from hfdistill.report import Interval, bootstrap
from hfdistill.report import scores as module
from hfdistill.report.calibration import confusion, expected_calibration_error, reliability
from hfdistill.report.contents import Score
from hfdistill.report.folders import Outcome, read_outcome
from hfdistill.report.scores import arm_report, curves, lone_report, teacher_report


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare intervals with each other, not with theory: 50 draws do."""
    monkeypatch.setattr(module, "RESAMPLES", 50)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write output folders of a classification and of a regression."""
    folders = {kind: tmp_path_factory.mktemp("out") / kind for kind in ("image", "regression")}
    for kind, folder in folders.items():
        write_output(folder, kind=kind)
    return folders


@pytest.fixture
def outcome(written: dict[str, Path]) -> Callable[[str], Outcome]:
    """Read a fresh outcome, which a test may change."""
    return lambda kind="image": read_outcome(written[kind])


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of equal classes."""
    return float(np.mean(predicted == labels))


def test_scores_are_the_recorded_ones_with_an_interval_of_the_predictions(outcome: Callable[..., Outcome]):
    """Mean and deviation over seeds, the interval over rows of the seeds' mean: one figure, two kinds of doubt."""
    found = outcome()
    control, student = found.arms
    runs = [run[SPLIT].argmax(axis=1) for run in found.predictions("kd")]
    values = [seed["accuracy"] for seed in student.metrics]
    low, high = bootstrap(accuracy, runs, found.evaluation[SPLIT], samples=50)
    expected = Score(float(np.mean(values)), float(np.std(values, ddof=1)), low, high, 2)
    assert arm_report(found, student).scores == {"accuracy": expected}
    assert arm_report(found, control).scores != {"accuracy": expected}
    assert teacher_report(found, found.teacher).scores["accuracy"].seeds == 1
    assert found.notes == []


def test_figures_beside_teacher_and_control(outcome: Callable[..., Outcome]):
    """By hand: retention and gap of the means over seeds, means of agreement and KL, the recorded difference."""
    found = outcome()
    found.teacher.metrics = [{"accuracy": 0.8}]
    control, student = found.arms
    control.metrics, student.metrics = ([{"accuracy": value}, {"accuracy": value + 0.2}] for value in (0.3, 0.5))
    student.agreement, student.kl, student.difference = [0.7, 0.9], [0.1, 0.3], Interval(0.2, -0.1, 0.4)
    report = arm_report(found, student)
    assert (report.kind, report.difference) == ("student", (0.2, -0.1, 0.4))
    assert (report.retention, report.recovered_gap) == pytest.approx((0.75, 0.5))
    assert (report.agreement, report.kl, report.training_seconds) == pytest.approx((0.8, 0.2, 3.0))
    beside = arm_report(found, control)
    assert (beside.kind, beside.difference, beside.recovered_gap) == ("control", None, None)
    assert beside.retention == pytest.approx(0.5)
    best = teacher_report(found, found.teacher)
    assert (best.kind, best.retention, best.agreement, best.kl, best.training_seconds) == ("teacher", *[None] * 4)


@pytest.mark.parametrize(("teacher", "retention"), [(0.0, None), (0.2, 2.0)])
def test_shares_of_nothing_are_left_out(teacher: float, retention: float | None, outcome: Callable[..., Outcome]):
    """A teacher at 0 has no share, one below the control leaves no gap: no figure is better than a misleading one."""
    found = outcome()
    found.teacher.metrics = [{"accuracy": teacher}]
    for arm in found.arms:
        arm.metrics = [{"accuracy": 0.4}, {"accuracy": 0.4}]
    report = arm_report(found, found.arms[1])
    assert (report.retention, report.recovered_gap) == (retention, None)


def test_calibration_and_confusion_are_those_of_the_predictions(outcome: Callable[..., Outcome]):
    """The error is the mean over seeds; bins and matrix, which have no mean to show, are the first seed's."""
    found = outcome()
    labels, runs = found.evaluation[SPLIT], [run[SPLIT] for run in found.predictions("kd")]
    report = arm_report(found, found.arms[1])
    errors = [expected_calibration_error(run, labels) for run in runs]
    assert report.calibration_error == pytest.approx(np.mean(errors))
    assert report.reliability == tuple(reliability(runs[0], labels))
    assert [list(line) for line in report.confusion] == confusion(runs[0], labels)
    assert teacher_report(found, found.teacher).confusion != report.confusion


def test_a_regression_has_neither_classes_nor_calibration(outcome: Callable[..., Outcome]):
    """One output has no confidence; its correlations have intervals as any metric."""
    found = outcome("regression")
    report = arm_report(found, found.arms[1])
    assert (report.calibration_error, report.reliability, report.confusion) == (None, (), None)
    assert list(report.scores) == ["spearmanr", "pearson"]  # the table's own first
    runs = [run[SPLIT][:, 0] for run in found.predictions("kd")]
    assert (report.scores["pearson"].low, report.scores["pearson"].high) == bootstrap(
        METRICS["pearson"], runs, found.evaluation[SPLIT], samples=50
    )


def test_each_split_has_its_own_rows(outcome: Callable[..., Outcome]):
    """MNLI's second split is scored against its own labels: those of the first have another number of rows."""
    found = outcome()
    logits = np.eye(3)[[0, 1, 2, 0]]
    found.evaluation["other"], found.teacher_logits["other"] = np.array([0, 1, 2, 1]), logits
    found.teacher.metrics = [{**found.teacher.metrics[0], "other/accuracy": 0.75}]
    score = teacher_report(found, found.teacher).scores["other/accuracy"]
    assert (score.low, score.high) == bootstrap(accuracy, [0, 1, 2, 0], [0, 1, 2, 1], samples=50)
    assert found.notes == []


def test_predictions_of_another_run_give_no_interval(outcome: Callable[..., Outcome]):
    """A run that was repeated since, or a metric of the same name: the interval would be around another figure."""
    found = outcome()
    found.arms[1].metrics[1]["accuracy"] += 0.01
    score = arm_report(found, found.arms[1]).scores["accuracy"]
    assert (score.low, score.high, score.seeds) == (None, None, 2)
    assert "different runs" in found.notes[0]


def test_an_unknown_metric_has_no_interval(outcome: Callable[..., Outcome]):
    """A user's own metric cannot be computed again; accuracy under its name would be wrong."""
    found = outcome()
    found.arms[1].metrics = [{"mine": 0.5, **seed} for seed in found.arms[1].metrics]
    assert arm_report(found, found.arms[1]).scores["mine"] == Score(0.5, 0.0, None, None, 2)
    assert "'mine' is not known" in found.notes[0]


def test_seeds_without_predictions_give_no_interval(outcome: Callable[..., Outcome]):
    """The mean of three seeds with the interval of one would claim more than was looked at."""
    found = outcome()
    found.folders["kd"] = found.folders["kd"][:1]
    score = arm_report(found, found.arms[1]).scores["accuracy"]
    assert (score.low, score.seeds) == (None, 2)
    assert "1 of the 2 seeds" in found.notes[0]


def test_without_predictions_the_recorded_figures_stay(outcome: Callable[..., Outcome]):
    """Weights and predictions are often removed to save space, results.json is kept."""
    found = outcome()
    found.folders = {}
    report = arm_report(found, found.arms[1])
    assert report.scores["accuracy"].mean == found.arms[1].summary("accuracy").mean
    assert (report.scores["accuracy"].low, report.calibration_error, report.curves) == (None, None, {})
    assert report.latencies == tuple(found.arms[1].latencies)


def test_curves_hold_what_was_logged_over_training():
    """Speeds and the summary at the end are no curves, and a point that is not finite has no place on an axis."""
    log = [
        {"step": 1, "loss": 2.0, "loss/kd": 1.0, "weight/kd": 0.5, "learning_rate": 0.1, "grad_norm": 3.0},
        {"step": 2, "loss": math.nan, "loss/kd": 0.5, "eval_note": "text"},
        {"step": 2, "eval_accuracy": 0.5, "eval_runtime": 1.0, "eval_samples_per_second": 9.0},
        {"step": 3, "loss": 1.0, "eval_loss": math.inf},
        {"step": 3, "train_runtime": 9.0, "train_loss": 1.5, "loss": 7.0},
        {"loss": 5.0},
    ]
    assert curves(log) == {
        "loss": ((1, 3), (2.0, 1.0)),
        "loss/kd": ((1, 2), (1.0, 0.5)),
        "weight/kd": ((1,), (0.5,)),
        "eval_accuracy": ((2,), (0.5,)),
    }


def test_curves_are_the_first_seeds(outcome: Callable[..., Outcome]):
    """An arm without a log has none, and the reader is told."""
    found = outcome()
    assert arm_report(found, found.arms[1]).curves["loss/kd"] == ((5, 10), (1.0, 0.8))
    found.folders = {**found.folders, "kd": [found.teacher_folder, found.folders["kd"][0]]}
    assert arm_report(found, found.arms[1]).curves == {}
    assert any("no training log of 'kd'" in note for note in found.notes)


def test_a_student_alone_has_the_scores_of_its_own_training(outcome: Callable[..., Outcome]):
    """They are what its trainer logged, not measured here: one seed, no interval, and a note that says so."""
    whole = outcome()
    found = replace(Outcome("mine"), folders={"mine": [whole.folders["kd"][0]]})
    report = lone_report(found, 12)
    assert (report.name, report.kind, report.parameters) == ("mine", "student", 12)
    assert report.scores == {"accuracy": Score(0.75, None, None, None, 1)}
    assert report.curves
    assert "neither teacher nor control" in found.notes[0]
