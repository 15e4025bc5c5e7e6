"""The trainer's daily business: what it logs, evaluates and predicts, and that it is a Trainer in everything else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from toy_models import toy_albert, toy_bert, toy_distilbert, toy_vit
from training_toys import collate, image_rows, largest_difference, logged, text_rows, trainer_of, weights_of
from transformers import TrainerCallback

from hfdistill import (
    AttentionMapLoss,
    FrozenTeacher,
    HiddenStateLoss,
    Needs,
    Objective,
    Representations,
    SoftTargetLoss,
    TaskLoss,
)

EVALUATED = text_rows(6, seed=8)  # in batches of 4 and 2 rows, and of different numbers of tokens
LAYERS = [(1, 2), (2, 4)]


class CountingTeacher(FrozenTeacher):
    """A teacher that counts the batches it is shown."""

    def __init__(self) -> None:
        super().__init__(toy_bert(layers=4, seed=1))
        self.batches = 0

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        self.batches += 1
        return super().represent(inputs, needs)


def full_objective() -> Objective:
    """Labels, soft targets and hidden states."""
    return Objective(task=TaskLoss(weight=0.5), kd=SoftTargetLoss(2.0), hidden=HiddenStateLoss(LAYERS))


def terms_by_hand(student: Any, teacher: Any) -> dict[str, float]:
    """The three terms on all of `EVALUATED` at once, from the formulas alone."""
    batch = collate(list(EVALUATED))
    labels = batch.pop("labels")
    with torch.no_grad():
        ours, theirs = student.eval()(**batch, output_hidden_states=True), teacher(**batch, output_hidden_states=True)
    log_ours, log_theirs = (F.log_softmax(output.logits / 2.0, dim=-1) for output in (ours, theirs))
    real = batch["attention_mask"].bool()
    errors = [(ours.hidden_states[s] - theirs.hidden_states[t]).square().mean(dim=-1) for s, t in LAYERS]  # (B, N)
    return {
        "task": F.cross_entropy(ours.logits, labels).item(),
        "kd": (4.0 * log_theirs.exp() * (log_theirs - log_ours)).sum(dim=-1).mean().item(),
        "hidden": sum(error[real].mean().item() for error in errors),
    }


def test_terms_are_logged_by_name(tmp_path: Path) -> None:
    """The log is where one sees which term drives the training."""
    trainer = trainer_of(tmp_path, full_objective())
    trainer.train()
    for line in logged(trainer):
        assert {key for key in line if "/" in key} == {"loss/task", "loss/kd", "loss/hidden"}
        assert all(value > 0 for key, value in line.items() if "/" in key)


def test_first_logged_terms_are_the_formulas(tmp_path: Path) -> None:
    """The trainer may not scale, reorder or shift what the losses compute."""
    student, teacher = toy_bert(), toy_bert(layers=4, seed=1)
    expected = terms_by_hand(student, teacher)
    trainer = trainer_of(
        tmp_path, full_objective(), student, EVALUATED, teacher=teacher, per_device_train_batch_size=6
    )
    trainer.train()
    for name, value in expected.items():
        assert logged(trainer)[0][f"loss/{name}"] == pytest.approx(value, rel=1e-5), name


def test_evaluation_needs_no_teacher(tmp_path: Path) -> None:
    """A validation pass at the price of the teacher would double the cost of every epoch."""
    teacher = CountingTeacher()
    trainer = trainer_of(tmp_path, full_objective(), teacher=teacher, eval_dataset=EVALUATED, eval_strategy="steps")
    trainer.train()
    assert teacher.batches == 2, "one per training step"
    metrics = trainer.evaluate()
    assert not [name for name in metrics if name.startswith("eval_loss/")]
    expected = terms_by_hand(trainer.model, teacher.model)
    # the Trainer weighs batches by their rows, so the mean is the whole set's
    assert metrics["eval_loss"] == pytest.approx(expected["task"], rel=1e-5)
    assert teacher.batches == 2


@pytest.mark.parametrize("trained", [True, False])
def test_evaluated_terms_are_those_of_the_whole_set(tmp_path: Path, trained: bool) -> None:
    """Batches of different size must count by what is in them, or the value would depend on the batch size."""
    teacher = CountingTeacher()
    trainer = trainer_of(tmp_path, full_objective(), teacher=teacher, eval_dataset=EVALUATED, eval_objective=True)
    if trained:
        trainer.train()
    metrics = trainer.evaluate()
    expected = terms_by_hand(trainer.model, teacher.model)
    shown = {name.removeprefix("eval_loss/"): value for name, value in metrics.items() if "eval_loss/" in name}
    assert shown == pytest.approx(expected, rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(expected["task"], rel=1e-5), "eval_loss stays the task's"
    assert trainer.evaluate(metric_key_prefix="test").keys() >= {"test_loss", "test_loss/kd", "test_loss/hidden"}


@pytest.mark.parametrize("eval_objective", [False, True])
def test_predictions_are_logits_alone(tmp_path: Path, eval_objective: bool) -> None:
    """Hidden states left in the output would be gathered over the whole set, and break compute_metrics."""
    shapes = []

    def accuracy(prediction: Any) -> dict[str, float]:
        shapes.append(np.asarray(prediction.predictions).shape)
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    changes = {"eval_dataset": EVALUATED, "compute_metrics": accuracy, "eval_strategy": "steps", "eval_steps": 1}
    trainer = trainer_of(tmp_path, full_objective(), eval_objective=eval_objective, **changes)
    trainer.train()
    predicted = trainer.predict(EVALUATED)
    assert isinstance(predicted.predictions, np.ndarray)
    batch = collate(list(EVALUATED))
    with torch.no_grad():
        logits = trainer.model(**batch).logits
    np.testing.assert_allclose(predicted.predictions, logits.numpy(), atol=1e-5)
    assert shapes == [(6, 3)] * 3
    assert predicted.metrics["test_accuracy"] == pytest.approx((logits.argmax(-1) == batch["labels"]).float().mean())


def test_callbacks_see_terms_and_student(tmp_path: Path) -> None:
    """Loggers (TensorBoard, W&B) are callbacks: what they are not given is not plotted."""
    seen: list[set[str]] = []

    class Watching(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any) -> None:
            assert model is trainer.model
            seen.append(set(logs))

    trainer = trainer_of(tmp_path, "kd", callbacks=[Watching()])
    trainer.train()
    assert all({"loss", "loss/kd", "loss/task"} <= names for names in seen[:2])


def test_compute_loss_func_takes_the_place_of_the_task_loss(tmp_path: Path) -> None:
    """A user's own task loss (class weights, focal loss) must not be ignored once a teacher is added."""

    def weighted(output: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return F.cross_entropy(output.logits, labels, weight=torch.tensor([1.0, 5.0, 0.1]))

    trainer = trainer_of(
        tmp_path,
        full_objective(),
        rows=EVALUATED,
        eval_dataset=EVALUATED,
        per_device_train_batch_size=6,
        per_device_eval_batch_size=6,
        compute_loss_func=weighted,
        eval_objective=True,
        max_steps=1,
    )
    batch = collate(list(EVALUATED))
    before = weighted(toy_bert()(**batch), batch["labels"]).item()
    trainer.train()
    assert logged(trainer)[0]["loss/task"] == pytest.approx(before, rel=1e-5)
    after = weighted(trainer.model.eval()(**batch), batch["labels"]).item()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(after, rel=1e-5)
    assert metrics["eval_loss/task"] == pytest.approx(after, rel=1e-5)


def test_label_smoothing_is_the_trainers(tmp_path: Path) -> None:
    """label_smoothing_factor set for a Trainer must go on working, and only on the labels."""
    changes: dict[str, Any] = {"rows": EVALUATED, "per_device_train_batch_size": 6, "max_steps": 1}
    smooth = trainer_of(tmp_path, full_objective(), label_smoothing_factor=0.3, **changes)
    smooth.train()
    sharp = trainer_of(tmp_path, full_objective(), **changes)
    sharp.train()
    batch = collate(list(EVALUATED))
    labels = batch.pop("labels")
    expected = F.cross_entropy(toy_bert()(**batch).logits, labels, label_smoothing=0.3).item()
    assert logged(smooth)[0]["loss/task"] == pytest.approx(expected, rel=1e-5)
    assert logged(smooth)[0]["loss/task"] != pytest.approx(logged(sharp)[0]["loss/task"], rel=1e-3)
    assert logged(smooth)[0]["loss/kd"] == pytest.approx(logged(sharp)[0]["loss/kd"], rel=1e-6)


def test_unlabelled_rows_teach_too(tmp_path: Path) -> None:
    """Distillation needs no labels: that is why it can use any text."""
    trainer = trainer_of(tmp_path, Objective(kd=SoftTargetLoss()), rows=text_rows(labels=None), max_steps=4)
    trainer.train()
    losses = [line["loss"] for line in logged(trainer)]
    assert losses[-1] < losses[0]


def test_ignored_rows_teach_nothing(tmp_path: Path) -> None:
    """A row labelled -100 is no row: with it and without it the step must be the same."""
    rows = text_rows(6, ignored=(1, 4))
    kept = rows.select([0, 2, 3, 5])
    changes: dict[str, Any] = {"max_steps": 1, "train_sampling_strategy": "sequential"}
    with_them = trainer_of(tmp_path, "kd", rows=rows, per_device_train_batch_size=6, **changes)
    with_them.train()
    without = trainer_of(tmp_path, "kd", rows=kept, per_device_train_batch_size=4, **changes)
    without.train()
    assert largest_difference(weights_of(without.model), toy_bert().state_dict()) > 1e-3
    assert largest_difference(weights_of(with_them.model), weights_of(without.model)) < 1e-6


@pytest.mark.parametrize(
    ("student", "teacher", "rows"),
    [(toy_distilbert, toy_bert, text_rows), (toy_albert, toy_albert, text_rows), (toy_vit, toy_vit, image_rows)],
)
def test_families_learn(tmp_path: Path, student: Any, teacher: Any, rows: Any) -> None:
    """Families differ in paths, masks and shared layers; in each of them every term must reach the student."""
    objective = Objective(task=TaskLoss(), hidden=HiddenStateLoss(), attention=AttentionMapLoss())
    trainer = trainer_of(
        tmp_path,
        objective,
        student(width=8),
        rows(),
        teacher=teacher(layers=4, seed=1),
        learning_rate=0.05,
        max_steps=8,
    )
    trainer.train()
    lines = logged(trainer)
    for name in ("loss/hidden", "loss/attention"):
        assert lines[-1][name] + lines[-2][name] < lines[0][name] + lines[1][name], name
