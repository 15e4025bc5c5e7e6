"""NaN and inf: what stops a run and what is said, what a skipped update leaves untouched, and that nobody waits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_toys import STEPS, FaultyLoss, breaking, marked_images, moments
from torch import Tensor
from toy_models import toy_bert, toy_resnet, toy_vit
from training_toys import arguments, largest_difference, logged, trainer_of, weights_of

from hfdistill import DistillationTrainer, Objective, SoftTargetLoss, TaskLoss
from hfdistill.faults.record import NonFiniteError

ADAM = {"optim": "adamw_torch", "weight_decay": 0.1}
FUSED = ADAM | {"optim": "adamw_torch_fused"}


def faulty(folder: Path, loss: FaultyLoss, **changes: Any) -> DistillationTrainer:
    """A trainer of four steps whose term `odd` breaks, beside one that does not."""
    objective = Objective(kd=SoftTargetLoss(), odd=loss)
    return trainer_of(folder, objective, **({"max_steps": STEPS} | ADAM | changes))


def patient(trainer: DistillationTrainer) -> DistillationTrainer:
    """The trainer as on an accelerator: nothing is read before it logs."""
    trainer._numbers.at_once = False
    return trainer


@pytest.mark.parametrize("way", ["nan", "inf", "value"])
def test_a_broken_term_stops_the_run_before_the_weights_change(tmp_path: Path, way: str) -> None:
    """The one that broke is named, the weights are those before it, and no checkpoint is written after it."""
    trainer = faulty(tmp_path, FaultyLoss(1, way), save_strategy="steps", save_steps=1)
    sound = faulty(tmp_path / "sound", FaultyLoss(STEPS), max_steps=1)
    sound.train()
    with pytest.raises(NonFiniteError, match=r"^objective term 'odd' \(micro-batch 0, what the student read") as found:
        trainer.train()
    for words in ("batch of step 1", "before that step", "labels", "temperature", "fp16", "learning rate", "'skip'"):
        assert words in str(found.value)
    assert "kd" not in str(found.value)
    assert largest_difference(weights_of(trainer.student), weights_of(sound.student)) == 0.0
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_the_rows_that_broke_it_are_named(tmp_path: Path) -> None:
    """A batch has many rows; without their numbers nobody finds the broken picture."""
    trainer = trainer_of(
        tmp_path, Objective(task=TaskLoss()), breaking(toy_vit()), marked_images(12, (5, 7)), teacher=None,
        train_sampling_strategy="sequential", max_steps=3, per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"'task' \(micro-batch 0, NaN or inf in rows 1\).*batch of step 1\."):
        trainer.train()


def test_a_broken_gradient_stops_it_too(tmp_path: Path) -> None:
    """A loss may be finite where its slope isn't; the next one would be NaN without a reason."""
    trainer = faulty(tmp_path, FaultyLoss(2, "gradient"), max_grad_norm=1.0)
    with pytest.raises(NonFiniteError, match=r"^the gradient norm became NaN or inf in the batch of step 2\."):
        trainer.train()
    assert all(value.isfinite().all() for value in weights_of(trainer.student).values())


@pytest.mark.parametrize("changes", [ADAM, FUSED, {"optim": "sgd", "optim_args": "momentum=0.9"}], ids=str)
@pytest.mark.parametrize("wait", [False, True], ids=["at once", "on a device"])
def test_a_skipped_update_changes_nothing(tmp_path: Path, changes: dict[str, Any], wait: bool) -> None:
    """Neither weights, nor momentum, nor running means: the student is that of a run without those rows."""
    rows, sound = marked_images(12, (6,)), marked_images(12, ()).select([0, 1, 2, 3, 8, 9, 10, 11])
    ended = []
    for number, (images, policy) in enumerate(((rows, "skip"), (sound, "stop"))):
        trainer = trainer_of(
            tmp_path / str(number), Objective(task=TaskLoss()), breaking(toy_resnet()), images, teacher=None,
            train_sampling_strategy="sequential", max_steps=len(images) // 4, on_nonfinite=policy, **changes,
        )  # fmt: skip
        trainer.train() if not wait else patient(trainer).train()
        ended.append(weights_of(trainer.student) | moments(trainer.optimizer, trainer.student))
        skipped = [line.get("skipped_updates") for line in logged(trainer)]
        assert skipped == ([0, 1, 0] if policy == "skip" else [None, None])
    assert len(ended[0]) > len(weights_of(toy_resnet())), "no momentum was compared"
    assert largest_difference(*ended) == 0.0


def test_skipped_terms_are_not_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One NaN would make the mean of a hundred steps NaN; a warning names the first instead."""
    changes = {"logging_steps": STEPS, "save_strategy": "steps", "save_steps": 2}  # a save counts nothing away
    trainer = faulty(tmp_path, FaultyLoss(1), on_nonfinite="skip", **changes)
    with caplog.at_level(logging.WARNING, logger="hfdistill"):
        trainer.train()
    (line,) = logged(trainer)
    assert line["skipped_updates"] == 1
    assert all(torch.tensor(value).isfinite() for key, value in line.items() if key.startswith("loss"))
    assert "Updates left out since the last reading: 1. The first: objective term 'odd'" in caplog.text


@pytest.mark.parametrize("way", ["nan", "value", "gradient"])
def test_on_an_accelerator_nothing_is_learnt_until_somebody_reads(tmp_path: Path, way: str) -> None:
    """The stop comes with the log line; until then the weights must stay those before the step that is named."""
    trainer = patient(faulty(tmp_path, FaultyLoss(1, way), logging_steps=STEPS, **FUSED))
    sound = faulty(tmp_path / "sound", FaultyLoss(STEPS), max_steps=1, **FUSED)
    sound.train()
    with pytest.raises(NonFiniteError, match="in the batch of step 1"):
        trainer.train()
    assert trainer.state.global_step == STEPS
    assert largest_difference(weights_of(trainer.student), weights_of(sound.student)) == 0.0


def test_on_an_accelerator_nothing_broken_is_saved(tmp_path: Path) -> None:
    """Where a checkpoint comes before the next log line, or training ends before it."""
    saving = {"logging_steps": 50, "save_strategy": "steps", "save_steps": STEPS}
    trainer = patient(faulty(tmp_path, FaultyLoss(1), **saving, **FUSED))
    with pytest.raises(NonFiniteError, match="in the batch of step 1"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))
    with pytest.raises(NonFiniteError, match="in the batch of step 1"):
        patient(faulty(tmp_path, FaultyLoss(1), logging_steps=50, **FUSED)).train()


def test_on_an_accelerator_no_step_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a number of the device between two log lines would stall it."""
    trainer = patient(faulty(tmp_path, FaultyLoss(1), on_nonfinite="skip", logging_steps=STEPS, **FUSED))
    numbers, reading = trainer._numbers, AssertionError("a tensor was read")

    def unread(name: str) -> None:
        own = getattr(numbers, name)

        def called(*words: Any) -> Any:
            def read(*_: Any) -> Any:
                raise reading

            with monkeypatch.context() as patched:
                for reader in ("__bool__", "item", "tolist", "__int__", "__float__", "cpu", "numpy"):
                    patched.setattr(Tensor, reader, read)
                return own(*words)

        monkeypatch.setattr(numbers, name, called)

    for name in ("begin", "look", "settle", "counted"):
        unread(name)
    trainer.train()
    assert [line["skipped_updates"] for line in logged(trainer)] == [1]
    numbers.at_once = True
    with pytest.raises(AssertionError, match="a tensor was read"):
        trainer.train()


@pytest.mark.parametrize("fault", [STEPS, 1], ids=["overflow", "term"])
def test_the_scaler_of_fp16_goes_on_skipping(tmp_path: Path, fault: int) -> None:
    """Scaled gradients overflow as a matter of course; only a term's own NaN is a fault."""
    trainer = faulty(tmp_path, FaultyLoss(fault), **({} if fault == STEPS else {"logging_steps": 2}))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127 * (1 if fault == STEPS else 2.0**-120))
    trainer.accelerator.scaler = scaler
    patient(trainer)
    if fault == STEPS:
        trainer.train()
        assert scaler.get_scale() < 2.0**127, "nothing overflowed"
        return
    with pytest.raises(NonFiniteError, match=r"objective term 'odd' \(micro-batch 0.*batch of step 1\."):
        trainer.train()
    assert all(value.isfinite().all() for value in weights_of(trainer.student).values())


def test_a_broken_teacher_costs_its_updates_where_they_are_skipped(tmp_path: Path) -> None:
    """Who asked to go on must not be stopped by the watch over the teacher."""
    teacher = toy_bert(layers=4, seed=1)
    trainer = trainer_of(tmp_path, Objective(kd=SoftTargetLoss()), teacher=teacher, on_nonfinite="skip")
    with torch.no_grad():
        teacher.classifier.bias.fill_(torch.nan)
    before = weights_of(trainer.student)
    trainer.train()
    assert [line["skipped_updates"] for line in logged(trainer)] == [1, 1]
    assert largest_difference(weights_of(trainer.student), before) == 0.0


def test_the_optimizer_is_given_back_as_it_was(tmp_path: Path) -> None:
    """What keeps it from making an update must not stay on it when the user goes on by hand."""
    student = toy_bert()
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.1, fused=True)
    changes = {"optimizers": (optimizer, None), "student": student, "on_nonfinite": "skip", "max_steps": STEPS}
    patient(trainer_of(tmp_path, Objective(odd=FaultyLoss(STEPS - 1)), **changes)).train()
    before = weights_of(student)
    student(input_ids=torch.tensor([[5, 6]])).logits.sum().backward()
    optimizer.step()
    assert largest_difference(weights_of(student), before) > 0


def test_unknown_policies_are_refused(tmp_path: Path) -> None:
    """A typing error must not decide what happens at three in the morning."""
    with pytest.raises(ValueError, match="on_nonfinite must be 'stop' or 'skip', got 'warn'"):
        arguments(tmp_path, on_nonfinite="warn")


def test_a_second_run_begins_anew(tmp_path: Path) -> None:
    """An error that was dealt with must not be raised again."""
    loss = FaultyLoss(1)
    trainer = faulty(tmp_path, loss)
    with pytest.raises(NonFiniteError):
        trainer.train()
    loss.at = STEPS
    trainer.train()
    assert len(logged(trainer)) == STEPS
