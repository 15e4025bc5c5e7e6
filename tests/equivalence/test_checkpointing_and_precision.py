"""Ways to save memory and time must not change what is learnt."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_models import toy_bert, toy_modernbert
from training_toys import largest_difference, logged, trainer_of, weights_of

from hfdistill import (
    AttentionMapLoss,
    AttentionRelationLoss,
    DistillationTrainer,
    HiddenStateLoss,
    Objective,
    SoftTargetLoss,
    TaskLoss,
)


def one_step(folder: Path, student: Any = toy_bert, **changes: Any) -> DistillationTrainer:
    """A trainer after one step of SGD with hidden states, attention scores and relations among the losses."""
    captured = {"hidden": HiddenStateLoss(), "attention": AttentionMapLoss(), "relation": AttentionRelationLoss()}
    objective = Objective(task=TaskLoss(), kd=SoftTargetLoss(), **captured)
    torch.manual_seed(2)
    trainer = trainer_of(folder, objective, student(layers=2, width=8), max_steps=1, **changes)
    trainer.train()
    return trainer


def learnt(trainer: DistillationTrainer) -> dict[str, Tensor]:
    """The student's and the projectors' weights."""
    return weights_of(trainer.model) | weights_of(trainer.objective)


@pytest.mark.parametrize("student", [toy_bert, toy_modernbert])
@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_activation_checkpointing_changes_nothing(tmp_path: Path, student: Any, epsilon: float) -> None:
    """Layers run a second time in the backward pass: capture must neither see these nor lose the gradient."""
    kept = one_step(tmp_path, student, embedding_perturbation=epsilon)
    recomputed = one_step(tmp_path, student, embedding_perturbation=epsilon, activation_checkpointing=True)
    assert recomputed.model.is_activation_checkpointing
    assert largest_difference(learnt(kept), weights_of(student(layers=2, width=8)) | weights_of(kept.objective)) > 1e-3
    assert largest_difference(learnt(kept), learnt(recomputed)) < 1e-6


def test_reentrant_checkpointing_is_refused(tmp_path: Path) -> None:
    """Its gradients of captured states are wrong without an error."""
    with pytest.raises(ValueError, match="use_reentrant"):
        one_step(tmp_path, activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True})


def test_bfloat16_keeps_losses_in_float32(tmp_path: Path) -> None:
    """Under autocast the models run in bfloat16; divergences computed in it would have two digits left."""
    dtypes = set()

    class Watched(DistillationTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            dtypes.update({loss.dtype, *(value.dtype for value in self._train_terms._totals.values())})
            return loss

    full = logged(one_step(tmp_path))[0]
    half = logged(one_step(tmp_path, kind=Watched, bf16=True))[0]
    assert dtypes == {torch.float32}
    for name in ("loss", "loss/task", "loss/kd", "loss/hidden", "loss/attention"):
        assert half[name] == pytest.approx(full[name], rel=0.05), name
        assert half[name] != full[name], "bfloat16 was not in use"
