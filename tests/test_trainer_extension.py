"""What users add: their own compute_loss, their own losses, and PEFT."""

from pathlib import Path
from typing import Any

import my_loss
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from toy_models import toy_bert, with_lora
from training_toys import collate, largest_difference, logged, text_rows, trainer_of, weights_of
from transformers.modeling_outputs import SequenceClassifierOutput

from hfdistill import DistillationTrainer, HiddenStateLoss, Objective, SoftTargetLoss, TaskLoss
from hfdistill.attachment import SUBMODULE
from hfdistill.objective_state import OBJECTIVE_STATE


class AddingTrainer(DistillationTrainer):
    """Adds a term of its own to the objective's loss."""

    strength = 0.5

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **others: Any) -> Any:
        loss, output = super().compute_loss(model, inputs, return_outputs=True, **others)
        assert isinstance(output, SequenceClassifierOutput)
        assert not {"hidden_states", "attentions"} & set(output)
        loss = loss + self.strength * output.logits.square().mean()
        return (loss, output) if return_outputs else loss


class PlainTrainer(DistillationTrainer):
    """Computes everything itself: the ordinary output of the ordinary forward."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **others: Any) -> Any:
        output = model(**inputs)
        assert isinstance(output, SequenceClassifierOutput)
        return (output.loss, output) if return_outputs else output.loss


def test_a_subclass_adds_a_term(tmp_path: Path) -> None:
    """Overriding compute_loss is how everybody extends a Trainer; the added term must count as it is written."""
    objective = Objective(task=TaskLoss(), hidden=HiddenStateLoss())
    adding = trainer_of(tmp_path, objective, toy_bert(width=8), kind=AddingTrainer, eval_dataset=text_rows())
    batch = next(iter(adding.get_train_dataloader()))
    with torch.no_grad():
        extra = adding.model(**batch).logits.square().mean().item()
    adding.train()
    first = logged(adding)[0]
    assert first["loss"] == pytest.approx(first["loss/task"] + first["loss/hidden"] + 0.5 * extra, rel=1e-5)
    metrics = adding.evaluate()
    rows = collate(list(text_rows()))
    output = adding.model.eval()(**rows)
    assert metrics["eval_loss"] == pytest.approx((output.loss + 0.5 * output.logits.square().mean()).item(), rel=1e-4)


def test_a_subclass_calls_the_student_itself(tmp_path: Path) -> None:
    """While the objective hangs on the student, `model(**inputs)` is still what transformers documents."""
    plain = trainer_of(tmp_path, "kd", kind=PlainTrainer)
    plain.train()
    assert not [name for name in logged(plain)[0] if name.startswith("loss/")]
    task = trainer_of(tmp_path, Objective(task=TaskLoss()), teacher=None)
    task.train()
    assert largest_difference(weights_of(plain.model), weights_of(task.model)) < 1e-6


@pytest.mark.parametrize("name", ["my_loss:MyLoss", "tests.my_loss:MyLoss"])
def test_a_loss_of_ones_own(tmp_path: Path, name: str) -> None:
    """A new idea is one small file: given as an object or by name from a configuration, it trains the same."""
    given = Objective(mine=my_loss.MyLoss([(2, 4)], scale=2.0), task=TaskLoss(weight=0.1))
    named = {
        "mine": {"loss": name, "layers": [[2, 4]], "scale": 2.0},
        "task": {"loss": "TaskLoss", "weight": 0.1},
    }
    runs = []
    for objective in (given, named):
        torch.manual_seed(4)
        trainer = trainer_of(tmp_path, objective, toy_bert(width=8), max_steps=4)
        trainer.train()
        lines = logged(trainer)
        assert lines[-1]["loss/mine"] + lines[-2]["loss/mine"] < lines[0]["loss/mine"] + lines[1]["loss/mine"]
        runs.append(weights_of(trainer.model) | weights_of(trainer.objective))
    assert largest_difference(*runs) == 0.0
    assert len(Path(my_loss.__file__).read_text(encoding="utf-8").splitlines()) < 30


def test_misspelt_keyword_of_ones_own_loss(tmp_path: Path) -> None:
    """A keyword that is swallowed is a run that trained on something else."""
    with pytest.raises(ValueError, match="scale"):
        trainer_of(tmp_path, {"mine": {"loss": "my_loss:MyLoss", "scales": 2.0}})


def lora_run(folder: Path, **changes: Any) -> DistillationTrainer:
    """A LoRA student half as wide as its teacher, with soft targets and projected hidden states."""
    torch.manual_seed(6)
    student = with_lora(toy_bert(width=8), ["query", "value"])
    objective = Objective(kd=SoftTargetLoss(), hidden=HiddenStateLoss())
    changes = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3} | changes
    return trainer_of(folder, objective, student, **changes)


def test_lora_student_learns_its_adapter(tmp_path: Path) -> None:
    """Under PEFT only the adapter and the projectors may move."""
    trainer = lora_run(tmp_path)
    student = trainer.model
    assert isinstance(student, PeftModel)
    before = weights_of(student) | weights_of(trainer.objective)
    trainer.train()
    after = weights_of(student) | weights_of(trainer.objective)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "lora" in name or "projectors" in name}
    assert SUBMODULE not in dict(student.named_children())


def test_lora_adapter_is_saved_alone(tmp_path: Path) -> None:
    """An adapter with foreign keys does not load, and one with the base inside is no adapter."""
    trainer = lora_run(tmp_path)
    trainer.train()
    for folder in (tmp_path / "checkpoint-2", tmp_path / "adapter"):
        if folder.name == "adapter":
            trainer.save_model(str(folder))
            assert not (folder / OBJECTIVE_STATE).exists()
        else:
            assert (folder / OBJECTIVE_STATE).is_file()
        names = load_file(folder / "adapter_model.safetensors").keys()
        assert names == get_peft_model_state_dict(trainer.model).keys()
        assert all("lora" in name for name in names)
    again = with_lora(toy_bert(width=8), ["query", "value"])
    found = set_peft_model_state_dict(again, load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert not found.unexpected_keys
    again.eval()
    batch = collate(list(text_rows()))
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, trainer.model.eval()(**batch).logits)
