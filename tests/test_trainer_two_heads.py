"""The trainer with a student whose forward takes no labels: DeiT with a head for them and one for the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from toy_models import toy_deit_with_teacher, toy_vit
from training_toys import image_rows, largest_difference, logged, trainer_of, weights_of
from transformers import DeiTForImageClassificationWithTeacher, EvalPrediction

from hfdistill import DistillationTrainer, Objective, SoftTargetLoss, TaskLoss
from hfdistill.images.mixing import ImageMixing
from hfdistill.mixup import Mix


def answers(model: torch.nn.Module, rows: Dataset) -> Tensor:
    """The logits that count when the model is used."""
    with torch.no_grad():
        logits: Tensor = model.eval()(pixel_values=torch.tensor(rows["pixel_values"])).logits
    return logits


def accuracy(found: EvalPrediction) -> dict[str, float]:
    """A metric that takes logits, as all do, and not a tuple of them."""
    predictions: Any = found.predictions
    return {"accuracy": float((predictions.argmax(-1) == found.label_ids).mean())}


def run(folder: Path, **changes: Any) -> DistillationTrainer:
    """A trainer of the toy DeiT, taught by a ViT."""
    given = {"teacher": toy_vit(seed=1), "eval_dataset": image_rows(6, seed=2), "compute_metrics": accuracy}
    return trainer_of(folder, "deit", toy_deit_with_teacher(), image_rows(16), **{**given, **changes})


def test_evaluation_is_of_the_answer(tmp_path: Path) -> None:
    """The Trainer would pass labels to a forward that has none, and give metrics a tuple of three logits."""
    trainer, rows = run(tmp_path), image_rows(6, seed=2)
    logits, labels = answers(trainer.student, rows), torch.tensor(rows["labels"])
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(F.cross_entropy(logits, labels).item())
    assert metrics["eval_accuracy"] == pytest.approx((logits.argmax(-1) == labels).float().mean().item())
    output = trainer.predict(rows)
    np.testing.assert_allclose(output.predictions, logits, atol=1e-6)
    assert output.metrics is not None
    assert output.metrics["test_loss"] == pytest.approx(metrics["eval_loss"])
    trainer.compute_metrics = None
    heads = trainer.predict(rows, ignore_keys=[]).predictions
    assert len(heads) == 3, "who asks for all of them is given them"


def test_rows_without_labels_are_predicted(tmp_path: Path) -> None:
    """Then there is no loss, and nothing to miss."""
    rows = image_rows(6, seed=2).remove_columns("labels")
    trainer = run(tmp_path, compute_metrics=None)
    output = trainer.predict(rows)
    np.testing.assert_allclose(output.predictions, answers(trainer.student, rows), atol=1e-6)
    assert output.metrics is not None
    assert "test_loss" not in output.metrics


def test_evaluation_smooths_and_asks_the_user_as_the_trainer_does(tmp_path: Path) -> None:
    """Both change what the Trainer calls the evaluation's loss."""
    rows = image_rows(6, seed=2)
    smooth = run(tmp_path, label_smoothing_factor=0.3)
    logits, labels = answers(smooth.student, rows), torch.tensor(rows["labels"])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.3).item()
    assert smooth.evaluate()["eval_loss"] == pytest.approx(expected)

    def function(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return outputs["logits"].square().mean() + labels.float().mean()

    own = run(tmp_path, compute_loss_func=function)
    own.model_accepts_loss_kwargs = False
    assert own.evaluate()["eval_loss"] == pytest.approx((logits.square().mean() + labels.float().mean()).item())


def test_every_term_can_be_evaluated(tmp_path: Path) -> None:
    """Each is of its own head, as in training."""
    metrics = run(tmp_path, eval_objective=True).evaluate()
    assert metrics["eval_loss/task"] != pytest.approx(metrics["eval_loss"], rel=1e-3)
    assert metrics["eval_loss/kd"] > 0


def test_training_evaluates_keeps_the_best_and_resumes(tmp_path: Path) -> None:
    """What a checkpoint holds is the whole student, and training it again from there ends up the same."""
    plan = {
        "max_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "mixup_alpha": 0.8,
        "label_smoothing_factor": 0.1,
    }
    whole, resumed = run(tmp_path / "whole", **plan), run(tmp_path / "resumed", **plan)
    whole.train()
    evaluated = [entry["eval_loss"] for entry in whole.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 2
    assert whole.evaluate()["eval_loss"] == pytest.approx(min(evaluated))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert [entry["loss/kd"] for entry in logged(whole)] == [entry["loss/kd"] for entry in logged(resumed)]
    assert largest_difference(weights_of(whole.student), weights_of(resumed.student)) == 0
    best = whole.state.best_model_checkpoint
    assert best is not None
    loaded = DeiTForImageClassificationWithTeacher.from_pretrained(best)
    assert largest_difference(weights_of(whole.student), weights_of(loaded)) == 0


def test_mixed_labels_are_learnt_by_the_class_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The teacher's head must not be taught labels by the back door."""
    mix = Mix(4, torch.arange(4), torch.tensor([1, 2, 3, 0]), torch.full((4,), 0.3))
    monkeypatch.setattr(ImageMixing, "draw", lambda self, pixels: mix)
    rows, objective = image_rows(4), Objective(task=TaskLoss(), kd=SoftTargetLoss())
    plan = {"max_steps": 1, "learning_rate": 0.0, "train_sampling_strategy": "sequential", "mixup_alpha": 1.0}
    trainer = trainer_of(tmp_path, objective, toy_deit_with_teacher(), rows, teacher=toy_vit(seed=1), **plan)
    trainer.train()
    images, labels = torch.tensor(rows["pixel_values"]), torch.tensor(rows["labels"])
    with torch.no_grad():
        logits = toy_deit_with_teacher()(0.7 * images + 0.3 * images[mix.partners]).cls_logits
    expected = 0.7 * F.cross_entropy(logits, labels) + 0.3 * F.cross_entropy(logits, labels[mix.partners])
    assert logged(trainer)[0]["loss/task"] == pytest.approx(expected.item(), rel=1e-5)
