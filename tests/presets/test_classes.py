"""Presets of class knowledge: which terms and weights each builds, when, and that the teacher rests when it may."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import toy_bert
from toy_representations import STUDENT, TEACHER, toy_anatomy, toy_scene
from training_toys import logged, trainer_of

from hfdistill import FrozenTeacher, Needs, Objective, Representations, TaskLoss
from hfdistill.losses.response.correlation import CorrelationLoss
from hfdistill.losses.response.decoupled import DecoupledLoss
from hfdistill.losses.response.soft_target import SoftTargetLoss
from hfdistill.losses.response.standardized import StandardizedLoss
from hfdistill.presets.classes import dist, dkd, eskd, logit_regression, lskd
from hfdistill.representations import Batch

EVERY: dict[str, tuple[Callable[..., Objective], dict[str, float], dict[str, float]]] = {
    "logit_regression": (logit_regression, {"kd": 1.0}, {"kd": 1.0}),
    "eskd": (eskd, {"task": 0.1, "kd": 0.9}, {"task": 1.0, "kd": 0.0}),
    "dkd": (dkd, {"task": 1.0, "kd": 0.0}, {"task": 1.0, "kd": 1.0}),
    "dist": (dist, {"task": 1.0, "kd": 1.0}, {"task": 1.0, "kd": 1.0}),
    "lskd": (lskd, {"task": 0.1, "kd": 9.0}, {"task": 0.1, "kd": 9.0}),
}


@pytest.mark.parametrize("name", EVERY)
def test_weights_at_start_and_end(name: str) -> None:
    """They are the method, and mean what the paper means by them only with its reduction."""
    make, start, end = EVERY[name]
    assert make().weights(0.0) == pytest.approx(start)
    assert make().weights(1.0) == pytest.approx(end)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_each_gives_a_loss_with_a_gradient(name: str, progress: float) -> None:
    """With default arguments, on models of other width and depth."""
    objective = EVERY[name][0]()
    objective.bind(STUDENT, TEACHER)
    scene = toy_scene().watched()
    scene.batch.progress = progress
    value = objective(*scene.parts()).loss
    value.backward()
    assert value.isfinite()
    assert scene.student.logits is not None
    assert scene.student.logits.grad is not None
    assert scene.student.logits.grad.any()


def test_logit_regression_learns_no_labels() -> None:
    """Its students never saw one: the mean square of the logits' gap is all."""
    student, teacher = torch.randn(2, 4, 3)
    result = logit_regression()(Representations(student), Representations(teacher), Batch(4))
    torch.testing.assert_close(result.loss, (student - teacher).square().mean())


@pytest.mark.parametrize("switch", [0.25, 0.5])
def test_eskd_is_kd_up_to_the_switch_and_the_task_alone_from_there(switch: float) -> None:
    """A weight that is only small would still cost the teacher's pass, and still pull."""
    objective, scene = eskd(temperature=2.0, alpha=0.75, switch=switch), toy_scene()
    objective.bind(STUDENT, TEACHER)
    plain = Objective(task=TaskLoss(weight=0.25), kd=SoftTargetLoss(2.0, weight=0.75))
    scene.batch.progress = switch - 1e-3
    torch.testing.assert_close(objective(*scene.parts()).loss, plain(*scene.parts()).loss)
    for progress in (switch, 1.0):
        assert objective.weights(progress) == {"task": 1.0, "kd": 0.0}
        assert objective.needs(progress)[1] == Needs()
        scene.batch.progress = progress
        torch.testing.assert_close(objective(*scene.parts()).loss, Objective(task=TaskLoss())(*scene.parts()).loss)


class CountingTeacher(FrozenTeacher):
    """A teacher that counts the batches it is shown."""

    def __init__(self) -> None:
        super().__init__(toy_bert(layers=4, seed=1))
        self.batches = 0

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        self.batches += 1
        return super().represent(inputs, needs)


def test_the_teacher_rests_after_the_switch(tmp_path: Path) -> None:
    """Half of the run without its forward pass is half of what early stopping is for."""
    teacher = CountingTeacher()
    trainer = trainer_of(tmp_path, eskd(switch=0.5), teacher=teacher, max_steps=4)
    trainer.train()
    assert teacher.batches == 2
    assert ["loss/kd" in entry for entry in logged(trainer)] == [True, True, False, False]


def test_dkd_warms_up_linearly() -> None:
    """The authors' 20 epochs of 240; 0 switches the warm-up off."""
    assert [dkd(warmup=0.2).weights(at)["kd"] for at in (0.0, 0.1, 0.2, 0.9)] == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert dkd().weights(1 / 24)["kd"] == pytest.approx(0.5)
    assert dkd(warmup=0).weights(0.0)["kd"] == 1.0
    with pytest.raises(ValueError, match=r"finish=20"):
        dkd(warmup=20)


def test_options_reach_their_losses() -> None:
    """A keyword that goes nowhere is a wish that the run does not fulfil."""
    kd = dkd(temperature=2.0, alpha=0.5, beta=3.0)["kd"]
    assert isinstance(kd, DecoupledLoss)
    assert (kd.temperature(0.0), kd.alpha, kd.beta) == (2.0, 0.5, 3.0)
    kd = dist(temperature=4.0, beta=2.0, gamma=3.0, gather=True)["kd"]
    assert isinstance(kd, CorrelationLoss)
    assert (kd.temperature(0.0), kd.beta, kd.gamma, kd.gather) == (4.0, 2.0, 3.0, True)
    objective = lskd(temperature=3.0, soft=2.0, hard=1.0)
    assert isinstance(objective["kd"], StandardizedLoss)
    assert objective["kd"].temperature(0.0) == 3.0
    assert objective.weights(0.0) == {"task": 1.0, "kd": 2.0}


def test_a_share_is_between_0_and_1() -> None:
    """At 1.5 the labels would weigh -0.5: the student would learn to be wrong."""
    with pytest.raises(ValueError, match=r"alpha must be a share between 0 and 1, got 1.5"):
        eskd(alpha=1.5)


@pytest.mark.parametrize("make", [dkd, dist, lskd])
def test_two_classes_name_the_term(make: Callable[..., Objective]) -> None:
    """The user wrote a preset's name, not the loss that refuses."""
    two = toy_anatomy(classes=2)
    with pytest.raises(ValueError, match=r"objective term 'kd': \w+ needs at least 3 classes, got 2"):
        make().bind(two, two)
