"""The trainer with uncertainty-aware mixup: what is forwarded, what is learnt from, and that it ends up the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import toy_bert, toy_vit
from toy_representations import toy_anatomy
from training_toys import image_rows, largest_difference, logged, text_rows, trainer_of, weights_of

from hfdistill import Anatomy, FrozenTeacher, Objective, SoftTargetLoss, TaskLoss, UncertaintyMixup
from hfdistill.pairing import check_mixing

MIXUP = {"uncertainty_mixup": True, "uncertainty_mixup_kwargs": {"keep": 0.5}}


class Watching(FrozenTeacher):
    """A teacher that remembers how many rows it was given, and its logits."""

    rows: list[int]

    def represent(self, inputs: Any, needs: Any) -> Any:
        shown = super().represent(inputs, needs)
        self.rows = [*vars(self).get("rows", []), len(shown.logits)]
        return shown


@pytest.mark.parametrize("images", [False, True])
def test_the_teacher_sees_only_the_rows_that_are_kept(images: bool, tmp_path: Path) -> None:
    """That is what it is for: the teacher's pass is most of the cost."""
    student, teacher = (toy_vit(), toy_vit(layers=4)) if images else (toy_bert(), toy_bert(layers=4, width=24))
    watching = Watching(teacher)
    trainer = trainer_of(
        tmp_path, Objective(kd=SoftTargetLoss()), student, image_rows() if images else None, teacher=watching, **MIXUP
    )
    before = weights_of(trainer.student)
    trainer.train()
    assert watching.rows == [2, 2]
    assert largest_difference(before, weights_of(trainer.student)) > 0


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path: Path) -> None:
    """Both must read the same mixed embeddings; mixed for one alone, they would disagree."""
    trainer = trainer_of(tmp_path, Objective(kd=SoftTargetLoss()), toy_bert(seed=1), teacher=toy_bert(seed=1), **MIXUP)
    for module in trainer.student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer.train()
    assert all(abs(entry["loss/kd"]) < 1e-6 for entry in logged(trainer))


def test_labels_of_both_rows_are_learnt(tmp_path: Path) -> None:
    """A mixed row with the label of one of them alone would teach that it is not the other."""
    trainer = trainer_of(
        tmp_path, Objective(task=TaskLoss(), kd=SoftTargetLoss()), teacher=toy_bert(layers=3), **MIXUP
    )
    trainer.train()
    assert all(entry["loss/task"] > 0 for entry in logged(trainer))


def test_a_resumed_run_mixes_the_same(tmp_path: Path) -> None:
    """Partners and strength are drawn from the generator that a checkpoint restores."""
    plan = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **MIXUP}
    runs = [trainer_of(tmp_path / name, "unix", rows=text_rows(16), **plan) for name in ("whole", "resumed")]
    runs[0].train()
    runs[1].train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert largest_difference(*(weights_of(run.student) for run in runs)) == 0


def test_a_teacher_that_cannot_be_shown_mixed_rows_is_refused(tmp_path: Path) -> None:
    """It would teach the unmixed rows to a student that reads mixed ones, and the loss would still fall."""

    class Served:
        anatomy = Anatomy.of(toy_bert(layers=4))

        def prepare(self, device: Any) -> None:
            """Nothing to do."""

        def represent(self, inputs: Any, needs: Any) -> Any:
            raise AssertionError

    with pytest.raises(ValueError, match="Pass the teacher as a model"):
        trainer_of(tmp_path, Objective(kd=SoftTargetLoss()), teacher=Served(), **MIXUP)


def test_losses_that_remember_rows_are_refused(tmp_path: Path) -> None:
    """A memory of mixtures would be contrasted with rows."""
    with pytest.raises(ValueError, match="the memory would hold what no row is"):
        trainer_of(tmp_path, "crd", **MIXUP)


def test_next_tokens_of_mixed_rows_are_refused(tmp_path: Path) -> None:
    """Its labels stand one place further on than those of other models, and are of two rows."""
    causal = toy_anatomy(head="ForCausalLM")
    check_mixing(UncertaintyMixup(), Objective(kd=SoftTargetLoss()), causal, None)
    check_mixing(None, Objective(kd=SoftTargetLoss(), task=TaskLoss()), causal, None)
    with pytest.raises(ValueError, match="Leave TaskLoss out"):
        check_mixing(UncertaintyMixup(), Objective(kd=SoftTargetLoss(), task=TaskLoss()), causal, None)
