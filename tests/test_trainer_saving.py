"""What is written: the student alone, loadable by anybody, and beside it what only resuming needs."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_models import toy_bert
from training_toys import collate, largest_difference, text_rows, trainer_of, weights_of
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, TrainerCallback

from hfdistill import HiddenStateLoss, Objective, SoftTargetLoss, TaskLoss
from hfdistill.attachment import SUBMODULE
from hfdistill.objective_state import OBJECTIVE_STATE


def with_projector() -> Objective:
    """An objective that learns something itself where the widths differ."""
    return Objective(task=TaskLoss(), kd=SoftTargetLoss(), hidden=HiddenStateLoss())


def loaded(folder: Path, auto: Any = AutoModelForSequenceClassification) -> Any:
    """The student in `folder`, of which nothing may be missing and nothing left over."""
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def test_saved_student_is_a_plain_folder(tmp_path: Path) -> None:
    """Who uses the student must neither have this package nor know that there was a teacher."""
    trainer = trainer_of(tmp_path, with_projector(), toy_bert(width=8))
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    student = loaded(tmp_path / "student")
    batch = collate(list(text_rows()))
    with torch.no_grad():
        assert torch.equal(student(**batch).logits, trainer.model.eval()(**batch).logits)
    assert {path.name for path in (tmp_path / "student").iterdir()} == {
        "config.json",
        "distillation.json",
        "model.safetensors",
    }


@pytest.mark.parametrize(("width", "learns"), [(8, True), (16, False)])
def test_checkpoints_hold_the_objective_beside_the_student(tmp_path: Path, width: int, learns: bool) -> None:
    """Resuming needs the projectors; a file where there are none would make people wonder."""
    trainer = trainer_of(tmp_path, with_projector(), toy_bert(width=width), save_strategy="steps", save_steps=1)
    trainer.train()
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        loaded(folder)
        assert (folder / OBJECTIVE_STATE).is_file() == learns
    if learns:
        state = load_file(folder / OBJECTIVE_STATE)
        assert largest_difference(state, weights_of(trainer.objective)) == 0.0
        assert any("projectors" in name for name in state)


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForMaskedLM"])
def test_saving_in_the_middle_of_training(tmp_path: Path, head: str) -> None:
    """Callbacks save students too, while the objective hangs on them."""

    class Saving(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            assert SUBMODULE in dict(model.named_children()), "the objective should hang on the student here"
            model.save_pretrained(tmp_path / f"step-{state.global_step}")

    rows = text_rows(labels="tokens" if head == "ForMaskedLM" else "rows")
    objective = Objective(hidden=HiddenStateLoss())
    student, teacher = toy_bert(width=8, head=head), toy_bert(layers=4, seed=1, head=head)
    trainer = trainer_of(tmp_path, objective, student, rows, teacher=teacher, callbacks=[Saving()])
    trainer.train()
    for step in (1, 2):
        assert not [name for name in load_file(tmp_path / f"step-{step}" / "model.safetensors") if SUBMODULE in name]
        auto = AutoModelForMaskedLM if head == "ForMaskedLM" else AutoModelForSequenceClassification
        saved = loaded(tmp_path / f"step-{step}", auto)
    assert largest_difference(weights_of(saved), weights_of(trainer.model)) == 0.0


def test_state_dict_given_by_a_wrapper_loses_the_objective(tmp_path: Path) -> None:
    """FSDP and DeepSpeed hand the Trainer a gathered state dict, which has all that hangs on the student."""
    trainer = trainer_of(tmp_path, with_projector(), toy_bert(width=8))
    with trainer._attached():
        trainer._save(str(tmp_path / "student"), dict(trainer.model.state_dict()))
    loaded(tmp_path / "student")


def test_resume_without_the_objective_is_refused(tmp_path: Path) -> None:
    """Going on with random projectors would change the run without a word."""
    first = trainer_of(tmp_path, "kd", toy_bert(width=8), save_strategy="steps", save_steps=1)
    first.train()
    second = trainer_of(tmp_path, with_projector(), toy_bert(width=8))
    with pytest.raises(ValueError, match="would silently change the run"):
        second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert SUBMODULE not in dict(second.model.named_children())


def test_resume_with_another_objective_is_refused(tmp_path: Path) -> None:
    """Projectors of other layers fit nothing; loading half of them is no resuming."""
    first = trainer_of(tmp_path, with_projector(), toy_bert(width=8), save_strategy="steps", save_steps=1)
    first.train()
    second = trainer_of(tmp_path, Objective(hidden=HiddenStateLoss([(1, 1)])), toy_bert(width=8))
    with pytest.raises((RuntimeError, ValueError), match="projectors"):
        second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_resume_warns_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The student's checkpoint lacks the objective on purpose: a warning of missing keys would frighten people."""
    first = trainer_of(tmp_path, with_projector(), toy_bert(width=8), save_strategy="steps", save_steps=1)
    first.train()
    second = trainer_of(tmp_path / "second", with_projector(), toy_bert(width=8))
    logger = logging.getLogger("transformers.trainer")
    logger.addHandler(caplog.handler)  # transformers' records do not propagate to the root, where caplog listens
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    logger.warning("heard")
    logger.removeHandler(caplog.handler)
    messages = [record.getMessage() for record in caplog.records]
    assert "heard" in messages
    assert not [message for message in messages if "missing keys" in message or "unexpected keys" in message]
