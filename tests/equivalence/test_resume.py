"""A run that was stopped and resumed must be the run that was never stopped, to the last bit."""

from pathlib import Path
from typing import Any

import pytest
import resumed_processes
import torch
from launching import in_two_processes
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toy_models import toy_bert, with_lora
from training_toys import largest_difference, logged, text_rows, trainer_of, weights_of

from hfdistill import DistillationTrainer, HiddenStateLoss, Objective, SoftTargetLoss, preset
from hfdistill.objective_state import OBJECTIVE_STATE

DROPOUT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
ROWS = text_rows(16)


def narrow_student(seed: int) -> nn.Module:
    """A student half as wide as the teacher, so that a projector is learnt; with dropout."""
    return toy_bert(width=8, seed=seed, **DROPOUT)


def lora_student(seed: int) -> nn.Module:
    """The same with a LoRA adapter, the only part of it that learns."""
    torch.manual_seed(seed)
    return with_lora(toy_bert(width=8, **DROPOUT), ["query", "value"])


def two_epochs(folder: Path, objective: Objective, student: nn.Module, **changes: Any) -> DistillationTrainer:
    """A trainer of two epochs of AdamW, with warmup, clipping and a checkpoint after each epoch."""
    optimizer = {"optim": "adamw_torch", "learning_rate": 1e-2, "lr_scheduler_type": "linear", "warmup_steps": 2}
    length = {"max_grad_norm": 1.0, "max_steps": -1, "num_train_epochs": 2, "save_strategy": "epoch"}
    torch.manual_seed(9)  # of the projectors, which a resumed run must not keep as they begin
    return trainer_of(folder, objective, student, ROWS, **optimizer, **length, **changes)


def learnt(trainer: DistillationTrainer) -> dict[str, Tensor]:
    """All that was trained: the student and the objective's parts."""
    return weights_of(trainer.model) | weights_of(trainer.objective)


OBJECTIVES = {
    "kd and projector": lambda: Objective(kd=SoftTargetLoss(), hidden=HiddenStateLoss()),
    "scheduled": lambda: preset("tinybert", switch=0.6),  # switches in the resumed half
}


@pytest.mark.parametrize("student", [narrow_student, lora_student])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path: Path, name: str, student: Any) -> None:
    """A machine that is taken away in the middle must change nothing: weights, projectors, schedules, dropout."""
    whole = two_epochs(tmp_path, OBJECTIVES[name](), student(0))
    whole.train()
    rest = two_epochs(tmp_path / "resumed", OBJECTIVES[name](), student(0 if student is lora_student else 5))
    assert largest_difference(learnt(rest), learnt(whole)) > 1e-3
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert largest_difference(learnt(rest), learnt(whole)) == 0.0
    assert [line["loss"] for line in logged(rest)[4:]] == [line["loss"] for line in logged(whole)[4:]]


def test_projectors_of_the_checkpoint_matter(tmp_path: Path) -> None:
    """If resuming with other projectors gave the same student, the test above would prove nothing about them."""
    whole = two_epochs(tmp_path, OBJECTIVES["kd and projector"](), narrow_student(0))
    whole.train()
    path = tmp_path / "checkpoint-4" / OBJECTIVE_STATE
    save_file({name: torch.zeros_like(value) for name, value in load_file(path).items()}, path)
    rest = two_epochs(tmp_path / "resumed", OBJECTIVES["kd and projector"](), narrow_student(0))
    rest.train(resume_from_checkpoint=str(path.parent))
    assert largest_difference(weights_of(rest.model), weights_of(whole.model)) > 1e-5


def test_resumed_run_finds_the_best_model(tmp_path: Path) -> None:
    """Loading the best checkpoint at the end happens while the objective hangs on the student: it must not get in."""
    best = {"eval_strategy": "epoch", "load_best_model_at_end": True, "eval_dataset": text_rows(8, seed=4)}
    whole = two_epochs(tmp_path, OBJECTIVES["kd and projector"](), narrow_student(0), **best)
    whole.train()
    rest = two_epochs(tmp_path / "resumed", OBJECTIVES["kd and projector"](), narrow_student(5), **best)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert largest_difference(weights_of(rest.model), weights_of(whole.model)) == 0.0
    chosen = whole.state.best_model_checkpoint
    assert chosen is not None
    saved = load_file(Path(chosen) / "model.safetensors")
    assert largest_difference({name: weights_of(whole.model)[name] for name in saved}, saved) == 0.0


@pytest.mark.slow
def test_two_processes_resume_where_they_were(tmp_path: Path) -> None:
    """Each with its own dropout and its own sums of the log: the weights of both, bit by bit, and every log line."""
    in_two_processes(resumed_processes.__file__, str(tmp_path))
    for rank in (0, 1):
        whole, log = load_file(tmp_path / f"None-{rank}.safetensors"), (tmp_path / f"None-{rank}.json").read_text()
        for step in resumed_processes.STEPS:
            assert largest_difference(load_file(tmp_path / f"{step}-{rank}.safetensors"), whole) == 0.0
            assert (tmp_path / f"{step}-{rank}.json").read_text() == log
    assert '"loss"' in (tmp_path / "None-0.json").read_text()
