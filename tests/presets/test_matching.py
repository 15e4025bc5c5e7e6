"""Presets of matching: the terms and weights each builds, and that it runs on a pair of other sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from toy_models import text_inputs, toy_bert
from toy_representations import STUDENT, TEACHER, toy_scene

from hfdistill.anatomy import Anatomy
from hfdistill.capture import capture
from hfdistill.losses.feature.attended_layer import AttendedLayerLoss
from hfdistill.losses.feature.attentive_channel import AttentiveChannelLoss
from hfdistill.losses.feature.channel_matching import ChannelMatchingLoss
from hfdistill.losses.feature.review import ReviewLoss
from hfdistill.losses.feature.task_oriented import TaskOrientedLoss
from hfdistill.losses.response.soft_target import SoftTargetLoss
from hfdistill.objective import Objective
from hfdistill.presets.matching import afd, afds, mgd, reviewkd, tofd
from hfdistill.representations import Batch
from hfdistill.schedules import Linear

# preset -> weights at the start and at the end of a run
WEIGHTS: dict[Callable[..., Objective], tuple[dict[str, float], dict[str, float]]] = {
    reviewkd: ({"task": 1.0, "review": 0.0}, {"task": 1.0, "review": 1.0}),
    afd: ({"task": 1.0, "kd": 0.9, "attended": 200.0},) * 2,
    afds: ({"task": 1.0, "attentive": 500.0},) * 2,
    mgd: ({"task": 1.0, "kd": 1.0, "matching": 1.0},) * 2,
    tofd: ({"task": 1.0, "kd": 1.0, "oriented": 1.0},) * 2,
}
EVERY = pytest.mark.parametrize("preset", WEIGHTS, ids=lambda preset: preset.__name__)


@EVERY
def test_weights_are_the_papers(preset: Callable[..., Objective]) -> None:
    """At the start and at the end of a run."""
    start, end = WEIGHTS[preset]
    assert preset().weights(0.0) == start
    assert preset().weights(1.0) == end


@EVERY
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_a_bound_preset_gives_finite_values(preset: Callable[..., Objective], progress: float) -> None:
    """On a student that is narrower and shallower than its teacher, with default arguments."""
    objective = preset()
    objective.bind(STUDENT, TEACHER)
    scene = toy_scene().watched()
    scene.batch.progress = progress
    result = objective(*scene.parts())
    assert result.loss > 0
    result.loss.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in objective.parameters())


@EVERY
def test_a_preset_learns_from_a_real_pair_of_models(preset: Callable[..., Objective]) -> None:
    """Every trainable part is reached by the loss, and nothing of the teacher."""
    student, teacher = toy_bert(layers=2, width=16), toy_bert(layers=4, width=24, seed=1)
    objective = preset()
    objective.bind(Anatomy.of(student), Anatomy.of(teacher))
    inputs = text_inputs()
    batch = Batch.of(inputs | {"labels": torch.tensor([0, 1, 2])}, progress=0.5)
    ours, theirs = (
        capture(model, inputs, needs)[1] for model, needs in zip((student, teacher), objective.needs(0.5), strict=True)
    )
    objective(ours, theirs, batch).loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_review_warms_up() -> None:
    """The authors' 20 epochs of 240; 0 switches it off."""
    assert [reviewkd().weights(at)["review"] for at in (0.0, 1 / 24, 1 / 12, 1.0)] == pytest.approx([0, 0.5, 1, 1])
    assert reviewkd(review=5.0, warmup=0.0).weights(0.0)["review"] == 5.0


def parts(objective: Objective, name: str, kind: type) -> dict[str, Any]:
    """The settings of one loss of an objective, which must be of this class."""
    loss = objective[name]
    assert type(loss) is kind
    return vars(loss)


def test_options_reach_their_losses() -> None:
    """A keyword that goes nowhere is a wish that the run does not fulfil."""
    assert parts(reviewkd(pooled="none"), "review", ReviewLoss)["pooled"] == "none"
    objective = afd(temperature=2.0, soft=0.5, attended=3.0, norm="batch", layers="last")
    assert objective.weights(0.0) == {"task": 1.0, "kd": 0.5, "attended": 3.0}
    assert parts(objective, "kd", SoftTargetLoss)["temperature"](0.0) == 2.0
    assert parts(objective, "attended", AttendedLayerLoss)["norm"] == "batch"
    objective.bind(STUDENT, TEACHER)
    assert parts(objective, "attended", AttendedLayerLoss)["teachers"] == (3, 4)
    assert parts(afds(attentive=2.0, ratio=0.5), "attentive", AttentiveChannelLoss)["ratio"] == 0.5
    objective = mgd(temperature=3.0, soft=0.0, matching=2.0, reduction="sparse", update_every=9, cost_batches=3)
    assert objective.weights(0.0) == {"task": 1.0, "kd": 0.0, "matching": 2.0}
    assert parts(objective, "kd", SoftTargetLoss)["temperature"](0.0) == 3.0
    matching = parts(objective, "matching", ChannelMatchingLoss)
    assert [matching[name] for name in ("reduction", "update_every", "cost_batches")] == ["sparse", 9, 3]
    oriented = parts(tofd(temperature=1.0, alpha=0.5, beta=0.25, pooling="mean"), "oriented", TaskOrientedLoss)
    assert [oriented[name] for name in ("temperature", "alpha", "beta", "pooling")] == [
        Linear(1.0, 2.0),
        0.5,
        0.25,
        "mean",
    ]


def test_soft_targets_of_tofd_are_cross_entropies_at_a_rising_temperature() -> None:
    """Without T^2, of the model's own head as of the auxiliary ones."""
    kd = parts(tofd(), "kd", SoftTargetLoss)
    assert (kd["divergence"], kd["scale_by_temperature"]) == ("cross_entropy", False)
    assert kd["temperature"] == Linear(1.0, 4.0)
