"""Stage-by-stage distillation: which layers learn when, and that all others stand still, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import toy_albert, toy_bert, toy_gpt2, toy_vit
from toy_representations import STUDENT, TEACHER, toy_scene
from training_toys import largest_difference, text_rows, trainer_of, weights_of
from transformers import TrainerCallback

from hfdistill import Objective, Piecewise, TaskLoss
from hfdistill.anatomy import depth_groups
from hfdistill.functional import hidden_mse
from hfdistill.losses.feature.stage_by_stage import StageByStageLoss


def objective(**changes: Any) -> Objective:
    """Two stages in the first half, then the head."""
    loss = StageByStageLoss(finish=0.5, weight=Piecewise({0.0: 1.0, 0.5: 0.0}), **changes)
    return Objective(stages=loss, task=TaskLoss(weight=Piecewise({0.0: 0.0, 0.5: 1.0})))


class Snapshots(TrainerCallback):
    """The student's weights before the first step and after each, by depth, and which modules had dropout on."""

    def __init__(self, groups: list[list[torch.nn.Module]]) -> None:
        self.groups = groups
        self.taken: list[list[torch.Tensor]] = []

    def take(self) -> None:
        self.taken.append(
            [
                torch.cat([own.detach().flatten().clone() for part in group for own in part.parameters()])
                for group in self.groups
            ]
        )

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.take()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.take()


def test_only_the_stage_moves(tmp_path: Path) -> None:
    """With momentum and weight decay a frozen layer would drift, and the stages below would be undone."""
    student = toy_bert(layers=2)
    watch = Snapshots(depth_groups(student))
    plan = {"optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 1e-2, "max_steps": 8}
    trainer = trainer_of(tmp_path, objective(), student, callbacks=[watch], num_train_epochs=1, **plan)
    trainer.train()
    moved = [
        {depth for depth, (old, new) in enumerate(zip(before, after, strict=True)) if not torch.equal(old, new)}
        for before, after in zip(watch.taken, watch.taken[1:], strict=False)
    ]
    assert moved == [{0, 1}] * 2 + [{2}] * 2 + [{3}] * 4
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_the_backbone_may_be_fine_tuned_at_last(tmp_path: Path) -> None:
    """The paper leaves it open, and short runs need it."""
    student = toy_bert(layers=2)
    watch = Snapshots(depth_groups(student))
    trainer_of(tmp_path, objective(train_backbone=True), student, callbacks=[watch], max_steps=4).train()
    assert all(not torch.equal(old, new) for old, new in zip(watch.taken[-2], watch.taken[-1], strict=True))


def test_frozen_stages_run_without_dropout(tmp_path: Path) -> None:
    """Noise below the stage would teach it to repair what no student has at inference."""
    student = toy_bert(layers=2)
    seen: list[list[bool]] = []
    layers = [group[0] for group in depth_groups(student)[1:3]]
    layers[1].register_forward_hook(lambda *_: seen.append([layer.training for layer in layers]))
    trainer_of(tmp_path, objective(), student, max_steps=8).train()
    assert seen[:2] == [[True, False]] * 2  # the first stage learns, the second is not its concern
    assert seen[2:4] == [[False, True]] * 2
    assert seen[4:] == [[False, False]] * 4


def test_a_resumed_run_ends_the_same(tmp_path: Path) -> None:
    """What stands still is a matter of progress, not of how often the run was stopped."""
    plan = {"save_strategy": "steps", "save_steps": 3, "max_steps": 8, "optim": "adamw_torch"}
    whole = trainer_of(tmp_path, objective(), rows=text_rows(32), **plan)
    whole.train()
    again = trainer_of(tmp_path / "again", objective(), rows=text_rows(32), **plan)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert largest_difference(weights_of(whole.student), weights_of(again.student)) == 0


def test_model_init_students_are_frozen_too(tmp_path: Path) -> None:
    """A search makes a student for each trial; freezing the first of them would freeze none that trains."""
    trainer = trainer_of(tmp_path, objective(), model_init=lambda: toy_bert(layers=2), max_steps=2)
    trainer.train()
    embeddings = depth_groups(trainer.student)[0][0]
    fresh = toy_bert(layers=2)
    assert not torch.equal(next(embeddings.parameters()), next(depth_groups(fresh)[0][0].parameters()))
    pooler = depth_groups(trainer.student)[3][0]
    assert largest_difference(weights_of(pooler), weights_of(depth_groups(fresh)[3][0])) > 0


def test_each_stage_is_the_hint_of_its_pair() -> None:
    """One stage's loss on another's layers would teach frozen ones."""
    loss, scene = StageByStageLoss(((2, 2), (1, 1)), finish=0.5), toy_scene(STUDENT, STUDENT)
    loss.bind(STUDENT, STUDENT)
    for progress, (ours, theirs) in ((0.0, (1, 1)), (0.26, (2, 2)), (0.49, (2, 2))):
        scene.batch.progress = progress
        value = loss(*scene.parts())
        expected = hidden_mse(scene.student.hidden_states[ours], scene.teacher.hidden_states[theirs], scene.batch.mask)
        torch.testing.assert_close(value, expected)
    scene.batch.progress = 0.5
    assert loss(*scene.parts()) == 0


@pytest.mark.parametrize("make", [toy_bert, toy_gpt2, toy_vit])
def test_depth_groups_hold_every_parameter_once(make: Any) -> None:
    """A parameter in no group would never be frozen; one in two would be, against the plan."""
    model = make()
    found = [id(own) for group in depth_groups(model) for module in group for own in module.parameters()]
    assert sorted(set(found)) == sorted(id(own) for own in model.parameters())


def test_a_shared_layer_is_refused(tmp_path: Path) -> None:
    """ALBERT's layers are one: freezing one freezes all."""
    with pytest.raises(ValueError, match="one shared module"):
        trainer_of(tmp_path, Objective(stages=StageByStageLoss(((1, 1),))), toy_albert(), teacher=toy_albert())


def test_finish_is_a_share() -> None:
    """A step number in its place would never end the first stage."""
    with pytest.raises(ValueError, match="a share of the run"):
        StageByStageLoss(finish=100)
    loss = StageByStageLoss()
    loss.bind(STUDENT, TEACHER)
    assert loss.pairs == ((1, 2), (2, 4))
