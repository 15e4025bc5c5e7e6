"""Checkpoints of families that are saved under other names than they have in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_models import toy_bert, toy_deit, toy_vit
from training_toys import image_rows, largest_difference, trainer_of, weights_of
from transformers import PreTrainedModel

from hfdistill.student_state import restore_renamed


@pytest.mark.parametrize("make", [toy_vit, toy_deit])
def test_renamed_weights_are_restored(make: type[PreTrainedModel], tmp_path: Path) -> None:
    """The Trainer only warns that it missed them, and the run goes on from other weights."""
    saved, student = make(), make()
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(1.0)
    saved.save_pretrained(tmp_path)
    assert restore_renamed(student, tmp_path)
    assert largest_difference(weights_of(student), weights_of(saved)) == 0


def test_other_checkpoints_are_left_to_the_trainer(tmp_path: Path) -> None:
    """Its own way knows sharded files, adapters and FSDP."""
    student = toy_bert()
    toy_bert(seed=1).save_pretrained(tmp_path / "bert")
    before = weights_of(student)
    assert not restore_renamed(student, tmp_path / "bert")
    assert not restore_renamed(student, tmp_path / "nothing")
    assert not restore_renamed(torch.nn.Linear(2, 2), tmp_path / "bert")
    assert largest_difference(before, weights_of(student)) == 0


def test_another_model_is_refused(tmp_path: Path) -> None:
    """Half of the weights of one model and half of another is neither."""
    toy_vit(layers=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a checkpoint of another model"):
        restore_renamed(toy_vit(layers=3), tmp_path)


def test_the_best_image_student_is_loaded_at_the_end(tmp_path: Path) -> None:
    """`load_best_model_at_end` would keep the last one, with a warning that nobody reads."""
    evaluated = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    trainer = trainer_of(
        tmp_path,
        student=toy_vit(),
        rows=image_rows(8),
        teacher=toy_vit(layers=4),
        eval_dataset=image_rows(4, seed=1),
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # the worst, so that it is not the last
        max_steps=4,
        **evaluated,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    assert not best.endswith("checkpoint-4")
    loaded = type(toy_vit()).from_pretrained(best)
    assert largest_difference(weights_of(trainer.student), weights_of(loaded)) == 0
