"""Presets of contrast: which terms run when, and that they run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from toy_representations import DATA_LABELS, STUDENT, TEACHER, toy_scene

from hfdistill.losses.memory import MemoryContrastLoss
from hfdistill.losses.relation.in_batch_contrast import InBatchContrastLoss
from hfdistill.losses.response.soft_target import SoftTargetLoss
from hfdistill.objective import Objective
from hfdistill.presets.contrastive import crcd, crd, infonce

WEIGHTS: dict[Callable[[], Objective], dict[float, dict[str, float]]] = {
    crd: {0.0: {"task": 1.0, "crd": 0.8}, 1.0: {"task": 1.0, "crd": 0.8}},
    crcd: {0.0: {"task": 1.0, "crcd": 1.0}, 0.959: {"task": 1.0, "crcd": 1.0}, 0.96: {"task": 1.0, "crcd": 0.0}},
    infonce: {0.0: {"task": 1.0, "infonce": 1.0}, 1.0: {"task": 1.0, "infonce": 1.0}},
}
EVERY = pytest.mark.parametrize("make", WEIGHTS, ids=lambda make: make.__name__)


@EVERY
def test_weights_are_those_of_the_docstring(make: Callable[[], Objective]) -> None:
    """A weight that is off by its reduction, or a phase that does not end, is another method."""
    for progress, weights in WEIGHTS[make].items():
        assert make().weights(progress) == weights


@EVERY
def test_a_preset_learns_from_a_pair_of_models(make: Callable[[], Objective]) -> None:
    """With defaults, on models of other width and depth and a small training set."""
    objective = make()
    objective.bind(STUDENT, TEACHER)
    for loss in objective.losses.values():
        if isinstance(loss, MemoryContrastLoss):
            loss.bind_data(len(DATA_LABELS), DATA_LABELS)
    result = objective(*toy_scene().parts())
    result.loss.backward()
    assert result.loss.isfinite()
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_soft_targets_join_where_they_are_asked_for() -> None:
    """They need equal classes on both sides, which contrast does not: left out, they must not be bound either."""
    objective = crd(contrast=0.5, soft=1.0, temperature=2.0)
    assert objective.weights(0.5) == {"task": 1.0, "crd": 0.5, "kd": 1.0}
    kd = objective["kd"]
    assert isinstance(kd, SoftTargetLoss)
    assert kd.temperature(0.0) == 2.0
    assert list(crd()) == ["task", "crd"]


def test_options_reach_their_losses() -> None:
    """A keyword that goes nowhere is a wish that the run does not fulfil."""
    for loss in (
        crd(negatives=7, contrast_temperature=0.2, pooling="cls")["crd"],
        crcd(negatives=7, contrast_temperature=0.2, pooling="cls", switch=0.5)["crcd"],
    ):
        assert isinstance(loss, MemoryContrastLoss)
        assert (loss.negatives, loss.temperature, loss.pooling) == (7, 0.2, "cls")
    assert crcd(contrast=2.0, switch=0.5).weights(0.4)["crcd"] == 2.0
    assert crcd(switch=0.5).weights(0.5)["crcd"] == 0.0
    loss = infonce(contrast=3.0, temperature=0.2, pooling="last", gather=True)["infonce"]
    assert isinstance(loss, InBatchContrastLoss)
    assert (loss.weight(0.0), loss.temperature, loss.pooling, loss.gather) == (3.0, 0.2, "last", True)
