"""The pull of each term at the start: broken ones, inert ones, those that drown the others, and sound ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checks.patients import of, only, run_of
from torch import Tensor
from toy_models import toy_bert
from training_toys import collate, text_rows, trainer_of

from hfdistill import Batch, DistillationLoss, Needs, Objective, Representations, SoftTargetLoss, TaskLoss, examine


class Scaled(DistillationLoss):
    """The square of the logits, times a number."""

    def __init__(self, factor: float = 1.0, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.factor = factor

    def needs(self) -> tuple[Needs, Needs]:
        """The student's logits."""
        return Needs(logits=True), Needs()

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """A number that depends on the student."""
        if student.logits is None:
            raise ValueError("no logits")
        return self.factor * student.logits.square().mean()


def told(objective: Objective, folder: Path, **changes: Any) -> list[Any]:
    """Warnings and errors about terms."""
    return of(examine(run_of(folder, objective, **changes)).at_least("warning"), "terms")


def test_balanced_terms_are_sound(tmp_path: Path):
    """The figures are there, and no complaint."""
    findings = examine(run_of(tmp_path, Objective(task=TaskLoss(weight=0.5), kd=SoftTargetLoss(weight=0.5))))
    terms = only(findings, "terms")
    assert terms.level == "ok"
    assert set(terms.figures) == {"task", "kd"}
    assert all(figures["norm"] > 0 for figures in terms.figures.values())


def test_the_norm_is_that_of_the_weighted_gradient(tmp_path: Path):
    """Against torch's own, on the one batch there is; without dropout the pass is the same."""
    trainer = run_of(tmp_path, Objective(task=TaskLoss(weight=0.25), kd=SoftTargetLoss()), rows=text_rows(4))
    found = only(examine(trainer), "terms").figures["task"]["norm"]
    student = toy_bert()
    batch = collate([text_rows(4)[at] for at in range(4)])
    (0.25 * student(**batch).loss).backward()
    expected = sum(float(own.grad.double().square().sum()) for own in student.parameters() if own.grad is not None)
    assert found == pytest.approx(expected**0.5, rel=1e-5)


def test_a_term_that_drowns_the_others_gets_a_weight_that_balances_it(tmp_path: Path):
    """The suggestion is taken, and the run is sound."""
    loud = Objective(task=TaskLoss(), kd=SoftTargetLoss(), big=Scaled(weight=3e4))
    (found,) = told(loud, tmp_path)
    assert "'big' (Scaled) drowns the others" in found.message
    suggested = found.figures["suggested_weight"]
    assert f"weight={suggested:g}" in found.advice
    mended = examine(run_of(tmp_path, Objective(task=TaskLoss(), kd=SoftTargetLoss(), big=Scaled(weight=suggested))))
    assert not of(mended.at_least("warning"), "terms")
    norms = {name: figures["norm"] for name, figures in only(mended, "terms").figures.items()}
    assert norms["big"] == pytest.approx(max(norms["task"], norms["kd"]), rel=0.06)  # the weight has two digits


def test_a_term_that_hardly_counts_gets_a_weight_that_balances_it(tmp_path: Path):
    """A weight of 1e-6, copied from a paper with another reduction, switches a term off in silence."""
    quiet = Objective(task=TaskLoss(), kd=SoftTargetLoss(), small=Scaled(weight=1e-6))
    (found,) = told(quiet, tmp_path)
    assert "'small' (Scaled) hardly counts" in found.message
    suggested = found.figures["suggested_weight"]
    assert not told(Objective(task=TaskLoss(), kd=SoftTargetLoss(), small=Scaled(weight=suggested)), tmp_path)


def test_a_term_without_a_gradient_has_no_weight_that_helps(tmp_path: Path):
    """A student equal to its teacher: only another student, or another term, does."""
    twin, objective = toy_bert(), Objective(task=TaskLoss(), kd=SoftTargetLoss())
    found = of(examine(trainer_of(tmp_path, objective, teacher=twin)).at_least("warning"), "terms")
    assert len(found) == 1
    assert "'kd' (SoftTargetLoss) has no gradient" in found[0].message
    assert "suggested_weight" not in found[0].figures
    alone = Objective(kd=SoftTargetLoss())
    (found,) = of(examine(trainer_of(tmp_path, alone, teacher=twin)).at_least("warning"), "terms")
    assert "has no gradient" in found.message


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_broken_terms_are_errors(factor: float, tmp_path: Path):
    """One NaN makes the whole student NaN; the others are still compared."""
    (found,) = told(Objective(task=TaskLoss(), kd=SoftTargetLoss(), bad=Scaled(factor)), tmp_path)
    assert found.level == "error"
    assert "'bad' (Scaled)" in found.message


def test_a_gradient_that_is_broken_behind_a_sound_value(tmp_path: Path):
    """Sqrt at 0 gives 0 and a gradient of inf: the log looks well until the first step."""

    class Root(Scaled):
        def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
            return (super().forward(student, teacher, batch) * 0.0).sqrt()

    (found,) = told(Objective(task=TaskLoss(), root=Root()), tmp_path)
    assert found.level == "error"
    assert found.figures["value"] == 0.0


def test_a_frozen_student_is_an_error(tmp_path: Path):
    """Nothing would ever change."""
    student = toy_bert().requires_grad_(False)
    (found,) = told(Objective(task=TaskLoss()), tmp_path, student=student)
    assert found.level == "error"


def test_terms_are_compared_where_they_compete(tmp_path: Path):
    """A term on the embeddings and one on the head: only the embeddings are pulled at by both."""
    hidden = {"loss": "HiddenStateLoss", "layers": [[0, 0]]}
    trainer = trainer_of(tmp_path, {"task": {"loss": "TaskLoss"}, "embeddings": hidden}, rows=text_rows(4))
    figures = only(examine(trainer), "terms").figures
    assert figures["task"]["reached"] > figures["embeddings"]["reached"] > 0
    student = toy_bert()
    batch = collate([text_rows(4)[at] for at in range(4)])
    student(**batch).loss.backward()
    shared = [own.grad for name, own in student.named_parameters() if "embeddings" in name and own.grad is not None]
    expected = sum(float(gradient.double().square().sum()) for gradient in shared) ** 0.5
    assert figures["task"]["norm"] == pytest.approx(expected, rel=1e-5)


def test_a_term_that_starts_later_is_named(tmp_path: Path):
    """TinyBERT's second stage: what has no weight now is not inert, it waits."""
    found = of(examine(run_of(tmp_path, "tinybert", teacher=toy_bert(layers=4))), "terms")
    assert any("weight of kd is 0 at the start" in finding.message for finding in found)
