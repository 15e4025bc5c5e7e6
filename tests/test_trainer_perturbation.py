"""The trainer with LRC-BERT's gradient perturbation: two forward passes a step, of which the second is trained on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import toy_albert, toy_bert, toy_distilbert, with_lora
from training_toys import largest_difference, logged, trainer_of, weights_of

from hfdistill import DistillationTrainer, HiddenStateLoss, Objective, SoftTargetLoss

STUDENTS = [toy_bert, toy_distilbert, toy_albert]


def one_step(folder: Path, student: Any, epsilon: float, objective: Any = "kd", **changes: Any) -> DistillationTrainer:
    """A trainer after one step of SGD."""
    torch.manual_seed(2)
    trainer = trainer_of(folder, objective, student, embedding_perturbation=epsilon, max_steps=1, **changes)
    trainer.train()
    return trainer


@pytest.mark.parametrize("student", STUDENTS)
def test_perturbed_student_learns_from_a_harder_point(tmp_path: Path, student: Any) -> None:
    """The loss trained on is that at the worst point nearby: higher, and with another gradient."""
    off = one_step(tmp_path, student(), 0.0)
    on = one_step(tmp_path, student(), 0.1)
    assert logged(on)[0]["loss"] > logged(off)[0]["loss"] * 1.0001
    assert largest_difference(weights_of(on.model), weights_of(off.model)) > 1e-6


@pytest.mark.parametrize("student", STUDENTS)
def test_a_step_of_no_length_is_no_perturbation(tmp_path: Path, student: Any) -> None:
    """What the first pass leaves behind (gradients, hooks, counts) would show in the limit."""

    def objective() -> Objective:
        return Objective(kd=SoftTargetLoss(), hidden=HiddenStateLoss())

    off = one_step(tmp_path, student(width=8), 0.0, objective())
    on = one_step(tmp_path, student(width=8), 1e-7, objective())
    assert largest_difference(weights_of(on.model), weights_of(off.model)) < 1e-6
    assert largest_difference(weights_of(on.objective), weights_of(off.objective)) < 1e-6
    assert logged(on)[0]["loss"] == pytest.approx(logged(off)[0]["loss"], rel=1e-5)


def test_lrc_bert_trains_with_its_perturbation(tmp_path: Path) -> None:
    """The published method is preset and perturbation together, in both of its stages, accumulated too."""
    run: dict[str, Any] = {"embedding_perturbation": 1.0, "max_steps": 5, "gradient_accumulation_steps": 2}
    trainer = trainer_of(tmp_path, "lrc_bert", toy_bert(width=8), per_device_train_batch_size=2, **run)
    trainer.train()
    lines = logged(trainer)
    assert "loss/kd" not in lines[0]
    assert {"loss/task", "loss/kd", "loss/contrastive"} <= lines[-1].keys()
    assert lines[3]["loss/contrastive"] < lines[0]["loss/contrastive"]


def test_frozen_embeddings_are_perturbed_too(tmp_path: Path) -> None:
    """Under LoRA nothing before the first layer learns, so its output carries no gradient of its own."""
    off = one_step(tmp_path, with_lora(toy_bert(), ["query"]), 0.0)
    on = one_step(tmp_path, with_lora(toy_bert(), ["query"]), 0.1)
    assert logged(on)[0]["loss"] > logged(off)[0]["loss"] * 1.0001
