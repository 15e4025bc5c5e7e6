"""What is optimised: student and projectors together, in every way a Trainer can be given an optimizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy_models import toy_bert
from training_toys import arguments, largest_difference, logged, trainer_of, weights_of

from hfdistill import Anatomy, DistillationTrainer, HiddenStateLoss, Objective, SoftTargetLoss
from hfdistill.attachment import SUBMODULE


def with_projector() -> Objective:
    """An objective that learns something itself where the widths differ."""
    return Objective(kd=SoftTargetLoss(), hidden=HiddenStateLoss())


def optimized(trainer: DistillationTrainer) -> set[int]:
    """The parameters that the trainer's optimizer changes, by identity."""
    assert trainer.optimizer is not None
    return {id(value) for group in trainer.optimizer.param_groups for value in group["params"]}


def is_bare(student: nn.Module) -> bool:
    """Whether nothing of a training is left on the student."""
    hooks = len(student._forward_hooks) + len(student._forward_pre_hooks)
    return SUBMODULE not in student._modules and not hooks and not student._keys_to_ignore_on_save


def test_projectors_are_trained(tmp_path: Path) -> None:
    """A projector outside the optimizer stays random, and the student learns to please it."""
    trainer = trainer_of(tmp_path, with_projector(), toy_bert(width=8))
    before = weights_of(trainer.objective)
    trainer.train()
    parameters = [*trainer.model.parameters(), *trainer.objective.parameters()]
    assert optimized(trainer) == {id(parameter) for parameter in parameters}
    after = weights_of(trainer.objective)
    assert before
    for name, value in before.items():
        assert not torch.equal(value, after[name]), name


def test_projectors_are_clipped_with_the_student(tmp_path: Path) -> None:
    """One step may be no longer than the norm that the user set, projectors included."""
    trainer = trainer_of(
        tmp_path, with_projector(), toy_bert(width=8), max_steps=1, max_grad_norm=1e-2, learning_rate=1.0
    )
    before = weights_of(trainer.model), weights_of(trainer.objective)
    trainer.train()
    after = weights_of(trainer.model), weights_of(trainer.objective)
    steps = [(new[name] - old[name]).flatten() for old, new in zip(before, after, strict=True) for name in old]
    assert torch.cat(steps).norm().item() == pytest.approx(1e-2, rel=1e-2)
    assert sum(float(after[1][name].sub(before[1][name]).norm()) for name in before[1]) > 1e-4
    assert logged(trainer)[0]["grad_norm"] > 1.0, "nothing had to be clipped"


def test_gradients_are_reset_after_each_step(tmp_path: Path) -> None:
    """Gradients of projectors that zero_grad does not reach would pile up over the run."""
    trainer = trainer_of(tmp_path, with_projector(), toy_bert(width=8))
    trainer.train()
    assert all(parameter.grad is None for parameter in trainer.objective.parameters())


def test_optimizer_made_before_training(tmp_path: Path) -> None:
    """Some users build optimizer and schedule themselves with the trainer's own methods."""
    early = trainer_of(tmp_path, with_projector(), toy_bert(width=8))
    state = weights_of(early.objective)
    early.create_optimizer()
    assert is_bare(early.model)
    early.train()
    late = trainer_of(tmp_path, with_projector(), toy_bert(width=8))
    late.objective.load_state_dict(state)
    late.train()
    assert optimized(early) >= {id(parameter) for parameter in early.objective.parameters()}
    assert largest_difference(weights_of(early.model), weights_of(late.model)) == 0.0


def test_own_optimizer_must_know_the_projectors(tmp_path: Path) -> None:
    """An optimizer of the student alone is the obvious mistake, and no error of PyTorch's."""
    student = toy_bert(width=8)
    own = torch.optim.SGD(student.parameters(), lr=0.1)
    trainer = trainer_of(tmp_path, with_projector(), student, optimizers=(own, None))
    with pytest.raises(ValueError, match="lacks 6 parameters of the objective"):
        trainer.train()
    assert is_bare(student)
    own.add_param_group({"params": list(trainer.objective.parameters())})
    before = weights_of(trainer.objective)
    trainer.train()
    assert largest_difference(before, weights_of(trainer.objective)) > 1e-5


def test_own_optimizer_of_an_objective_bound_before(tmp_path: Path) -> None:
    """Who binds the objective first can hand over one optimizer of all; the trainer keeps the projectors."""
    student, teacher, objective = toy_bert(width=8), toy_bert(layers=4, seed=1), with_projector()
    objective.bind(Anatomy.of(student), Anatomy.of(teacher))
    parameters = [*student.parameters(), *objective.parameters()]
    own = torch.optim.SGD(parameters, lr=0.1)
    trainer = trainer_of(tmp_path, objective, student, teacher=teacher, optimizers=(own, None))
    before = weights_of(objective)
    trainer.train()
    assert {id(parameter) for parameter in parameters} == optimized(trainer)
    assert largest_difference(before, weights_of(objective)) > 1e-5


def test_frozen_student_parameters_stay(tmp_path: Path) -> None:
    """Freezing the embeddings is a usual economy; distillation must respect it."""
    student = toy_bert(width=8)
    student.get_input_embeddings().requires_grad_(False)
    before = weights_of(student)
    trainer = trainer_of(tmp_path, with_projector(), student)
    trainer.train()
    changed = {name for name, value in weights_of(student).items() if not torch.equal(value, before[name])}
    assert "bert.embeddings.word_embeddings.weight" not in changed
    assert len(changed) > 20


def test_model_init_gives_a_fresh_student_for_each_training(tmp_path: Path) -> None:
    """Hyperparameter search calls train() again and again, and each trial must start anew."""
    students = []

    def fresh() -> nn.Module:
        students.append(toy_bert(width=8))
        return students[-1]

    trainer = trainer_of(tmp_path, "kd", model_init=fresh)
    results = []
    for _ in range(2):
        trainer.train()
        assert trainer.model is students[-1]
        results.append(weights_of(trainer.model))
    assert largest_difference(results[0], toy_bert(width=8).state_dict()) > 1e-3
    assert largest_difference(*results) == 0.0
    assert all(is_bare(student) for student in students)


def test_model_init_with_projectors(tmp_path: Path) -> None:
    """The projectors of one trial must not go into the next, which they would favour."""
    trainer = trainer_of(tmp_path, with_projector(), model_init=lambda: toy_bert(width=8), max_steps=4)
    results = []
    for _ in range(2):
        trainer.train()
        assert optimized(trainer) >= {id(parameter) for parameter in trainer.objective.parameters()}
        results.append(weights_of(trainer.model) | weights_of(trainer.objective))
    assert largest_difference(*results) == 0.0
    assert is_bare(trainer.model)


def test_model_init_may_change_the_student(tmp_path: Path) -> None:
    """A search over the student's size is what model_init is for; layer maps and projectors must follow."""
    widths = iter([8, 8, 4])
    trainer = trainer_of(tmp_path, with_projector(), model_init=lambda: toy_bert(width=next(widths), layers=2))
    trainer.train()
    trainer.train()
    assert {name: tuple(value.shape) for name, value in trainer.objective.named_parameters() if "weight" in name} == {
        f"losses.hidden.projectors.{position}.linear.weight": (16, 4) for position in range(3)
    }


def test_plain_training_arguments_are_enough(tmp_path: Path) -> None:
    """A Trainer script becomes a distillation script by adding two arguments, not by changing the others."""
    from transformers import TrainingArguments

    names = ("use_cpu", "disable_tqdm", "dataloader_pin_memory", "max_steps", "logging_steps", "save_strategy")
    ours = arguments(tmp_path)
    args = TrainingArguments(output_dir=str(tmp_path), **{name: getattr(ours, name) for name in names})
    trainer = trainer_of(tmp_path, "kd", args=args)
    trainer.train()
    assert {"loss/kd", "loss/task"} <= logged(trainer)[0].keys()


class Stumbling(SoftTargetLoss):
    """A loss that fails in the second step."""

    def forward(self, *args: Any) -> Any:
        self.calls = vars(self).get("calls", 0) + 1
        if self.calls == 2:
            raise RuntimeError("stumbled")
        return super().forward(*args)


@pytest.mark.parametrize("where", ["nowhere", "loss", "student"])
def test_student_is_bare_after_training(tmp_path: Path, where: str) -> None:
    """Hooks and projectors left behind would end up in whatever the user does next, after a crash too."""
    student = toy_bert(width=8)
    configs = {name: id(vars(module).get("config")) for name, module in student.named_modules()}
    loss = Stumbling() if where == "loss" else SoftTargetLoss()
    trainer = trainer_of(tmp_path, Objective(kd=loss, hidden=HiddenStateLoss()), student)
    if where == "nowhere":
        trainer.train()
    elif where == "loss":
        with pytest.raises(RuntimeError, match="stumbled"):
            trainer.train()
    else:
        handle = student.classifier.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("fell")))
        with pytest.raises(RuntimeError, match="fell"):
            trainer.train()
        handle.remove()
    assert is_bare(student)
    assert student.state_dict().keys() == toy_bert(width=8).state_dict().keys()
    hooks = [
        hook  # transformers leaves its own hooks where it was asked for hidden states; ours must be gone
        for module in student.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if hook.__module__.startswith("hfdistill")
    ]
    assert not hooks
    assert configs == {name: id(vars(module).get("config")) for name, module in student.named_modules()}
