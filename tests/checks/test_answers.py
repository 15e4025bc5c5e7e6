"""How good the teacher is on the labels, whether its classes stand in their order, and whether it repeats itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checks.patients import KnowingTeacher, answers_of, labelled, of, only, run_of
from datasets import Dataset
from toy_models import toy_bert, toy_gpt2
from training_toys import text_rows, trainer_of

from hfdistill import Anatomy, FrozenTeacher, Needs, Representations, examine

ORDERED = "label order"
QUALITY = "teacher's quality"


class Told(KnowingTeacher):
    """Says `scale` x label + noise of a regression."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.anatomy = Anatomy.of(toy_bert(classes=1))
        self.scale = scale

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        """One number per row."""
        labels = inputs["labels"].float()
        return Representations(logits=(self.scale * (labels + 0.1 * torch.sin(7 * labels)))[:, None])


class Wavering(KnowingTeacher):
    """Says something else each time."""

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        """Its knowledge and noise."""
        shown = super().represent(inputs, needs)
        shown.logits = shown.logits + 0.5 * torch.randn_like(shown.logits)
        return shown


def numbers(count: int = 48) -> Dataset:
    """Rows with a number each."""
    return labelled(text_rows(count), [float(at % 7) for at in range(count)])


def test_a_teacher_that_knows_the_labels_is_sound(tmp_path: Path):
    """What is right must not be complained of, whatever else is checked."""
    findings = examine(run_of(tmp_path))
    assert not findings.at_least("warning")
    quality, order = only(findings, QUALITY), only(findings, ORDERED)
    assert (quality.level, order.level) == ("ok", "ok")
    assert quality.figures["teacher"] == 1.0
    assert quality.figures["items"] == 48
    assert 1 / 3 < quality.figures["chance"] < 0.6
    assert order.figures["order"] == [0, 1, 2]


@pytest.mark.parametrize("order", [(1, 2, 0), (0, 2, 1)])
def test_classes_in_another_order_are_found_with_the_map_that_mends_them(order: tuple[int, ...], tmp_path: Path):
    """The commonest silent mistake: every class is learnt from a wrong one. Two classes of three may be swapped."""
    found = only(examine(run_of(tmp_path, teacher=KnowingTeacher(order))), ORDERED)
    assert found.level == "error"
    assert found.figures["label_map"] == list(order)
    assert f"label_map={list(order)}" in found.advice
    assert found.figures["best_accuracy"] == 1.0
    assert found.figures["accuracy"] < 0.5


def test_the_advised_map_mends_a_model_and_is_told_in_its_own_classes(tmp_path: Path):
    """The advice is followed to the end; a teacher with a map already gets one for the model, not for the map."""
    model = toy_bert(layers=4, seed=1)
    said = answers_of(model, text_rows(60))
    assert min(said.count(name) for name in range(3)) > 5, "the toy teacher must use all of its classes"
    rows = labelled(text_rows(60), [[2, 0, 1][name] for name in said])
    for given in (None, [2, 0, 1]):
        teacher = FrozenTeacher(model, label_map=given)
        found = only(examine(trainer_of(tmp_path, teacher=teacher, rows=rows)), ORDERED)
        assert found.figures["label_map"] == [1, 2, 0]
    mended = FrozenTeacher(model, label_map=[1, 2, 0])
    findings = examine(trainer_of(tmp_path, teacher=mended, rows=rows))
    assert (only(findings, ORDERED).level, only(findings, QUALITY).figures["teacher"]) == ("ok", 1.0)


def test_too_few_rows_decide_nothing(tmp_path: Path):
    """Among all orders of the classes one fits a handful of rows by luck; the doctor must say that it cannot tell."""
    found = only(examine(run_of(tmp_path, teacher=KnowingTeacher((1, 2, 0)), rows=text_rows(8))), ORDERED)
    assert found.level == "note"
    assert found.figures["rows"] == 8
    needed = int(found.advice.split()[2])
    more = run_of(tmp_path, teacher=KnowingTeacher((1, 2, 0)), rows=text_rows(2 * needed))
    assert only(examine(more), ORDERED).level == "error"


def test_a_teacher_of_other_classes_is_not_judged_by_these(tmp_path: Path):
    """Its layers may teach all the same; its answers are to another question."""
    objective = {"hidden": {"loss": "HiddenStateLoss"}, "task": {"loss": "TaskLoss"}}
    findings = examine(run_of(tmp_path, objective, teacher=toy_bert(layers=4, seed=1, classes=2)))
    assert {only(findings, check).message.partition(":")[0] for check in (QUALITY, ORDERED)} == {"not applicable"}
    assert findings.worst != "error"


def test_a_random_teacher_has_no_better_order(tmp_path: Path):
    """Of six orders the best is always better than its own; that alone is no finding, but its quality is."""
    for seed in range(6):
        trainer = run_of(tmp_path, teacher=toy_bert(layers=4, seed=seed), rows=text_rows(64, seed=seed))
        findings = examine(trainer)
        assert only(findings, ORDERED).level != "error"
        assert only(findings, QUALITY).level == "warning"


def test_a_teacher_below_the_student_is_named_with_both_figures(tmp_path: Path):
    """It would teach what the student must unlearn."""
    student = toy_bert()
    rows = labelled(text_rows(64), answers_of(student, text_rows(64)))
    found = only(examine(run_of(tmp_path, student=student, rows=rows, teacher=KnowingTeacher(wrong=1))), QUALITY)
    assert found.level == "warning"
    assert found.figures["student"] == 1.0
    assert found.figures["teacher"] == 0.75
    assert "The student knows more" in found.message


@pytest.mark.parametrize(
    ("scale", "level", "said"), [(1.0, "ok", ""), (-1.0, "warning", "chance"), (0.01, "warning", "another scale")]
)
def test_a_regression_is_judged_by_correlation_and_scale(scale: float, level: str, said: str, tmp_path: Path):
    """Accuracy means nothing there; numbers on another scale correlate and still teach wrong values."""
    student = toy_bert(classes=1)
    findings = examine(run_of(tmp_path, teacher=Told(scale), student=student, rows=numbers()))
    found = only(findings, QUALITY)
    assert found.level == level
    assert said in found.message
    assert found.figures["measure"] == "correlation"
    assert only(findings, ORDERED).level == "note"


@pytest.mark.parametrize("kind", ["tokens", "next tokens", "no labels", "no teacher", "several labels"])
def test_other_tasks_are_judged_or_passed_over(kind: str, tmp_path: Path):
    """The doctor must work for every trainer there is; what does not apply is said so."""
    changes: dict[str, Any] = {}
    objective: Any = "kd"
    if kind == "tokens":
        models = toy_bert(head="ForTokenClassification"), toy_bert(head="ForTokenClassification", layers=4, seed=1)
        changes = {"student": models[0], "teacher": models[1], "rows": text_rows(16, labels="tokens", ignored=(0, 1))}
    if kind == "next tokens":
        rows = text_rows(16, labels=None).map(lambda row: {"labels": row["input_ids"]})
        models = toy_gpt2(head="LMHeadModel"), toy_gpt2(head="LMHeadModel", layers=4, seed=1)
        changes = {"student": models[0], "teacher": models[1], "rows": rows}
    if kind == "several labels":
        rows = text_rows(16).map(lambda row: {"labels": [float(row["labels"] == k) for k in range(3)]})
        student = toy_bert(problem_type="multi_label_classification")
        changes = {"rows": rows, "student": student, "teacher": toy_bert(layers=4, seed=1)}
    if kind == "no labels":
        objective = {"kd": {"loss": "SoftTargetLoss"}}
        changes = {"rows": text_rows(16, labels=None), "teacher": toy_bert(layers=4, seed=1)}
    if kind == "no teacher":
        objective, changes = {"task": {"loss": "TaskLoss"}}, {"teacher": None}
    findings = examine(run_of(tmp_path, objective, **changes))
    assert findings.worst != "error"
    judged = kind in ("tokens", "next tokens", "several labels")
    if judged:
        labels = trainer_labels(changes["rows"], kind)
        assert only(findings, QUALITY).figures["items"] == labels
    else:
        assert only(findings, QUALITY).message.startswith("not applicable")
    if kind != "no teacher":
        applicable = kind == "tokens"
        assert only(findings, ORDERED).message.startswith("not applicable") != applicable


def trainer_labels(rows: Dataset, kind: str) -> int:
    """How many labels count: tokens that are not -100, all but the first of a row, all of a row."""
    if kind == "next tokens":
        return sum(len(row) - 1 for row in rows["labels"])
    return sum(label != -100 for row in rows["labels"] for label in row)


def test_a_teacher_that_says_something_else_each_time(tmp_path: Path):
    """Its targets are noise, and no run can be repeated."""
    found = only(examine(run_of(tmp_path, teacher=Wavering())), "determinism")
    assert found.level == "warning"
    assert found.figures["relative"] > 0.01
    assert only(examine(run_of(tmp_path)), "determinism").level == "ok"
    part = FrozenTeacher(toy_bert(layers=4, seed=1, hidden_dropout_prob=0.5))
    trainer = trainer_of(tmp_path, teacher=part)
    part.model.bert.encoder.layer[0].train()
    findings = examine(trainer)
    assert only(findings, "determinism").level == "warning"
    assert len(of(findings, "teacher's mode")) == 1  # seen at the start and again, told once


def test_broken_numbers_of_the_teacher_are_an_error(tmp_path: Path):
    """Training stops at them too; the doctor says so before."""
    teacher = toy_bert(layers=4, seed=1)
    teacher.bert.embeddings.word_embeddings.weight.data[9] = float("nan")
    findings = examine(trainer_of(tmp_path, teacher=teacher, rows=text_rows(32)))
    assert any(finding.level == "error" and "NaN or inf" in finding.message for finding in findings)
