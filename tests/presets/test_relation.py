"""Presets of relations between rows: which terms and weights each builds, and that each learns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from toy_models import text_inputs, toy_bert
from toy_representations import STUDENT, TEACHER, toy_scene

from hfdistill import Objective
from hfdistill.anatomy import Anatomy
from hfdistill.capture import capture
from hfdistill.losses.relation.category_structure import CategoryStructureLoss
from hfdistill.losses.relation.instance_graph import InstanceGraphLoss
from hfdistill.losses.response.soft_target import SoftTargetLoss
from hfdistill.presets.relation import cc, cskd, irg, lcc, pkt, rkd, sp, stepwise_rkd
from hfdistill.representations import Batch

EVERY: dict[Callable[[], Objective], dict[str, float]] = {
    rkd: {"task": 1.0, "distance": 25.0, "angle": 50.0},
    stepwise_rkd: {"task": 1.0, "kd": 1.0, "distance": 25.0, "angle": 50.0},
    sp: {"task": 1.0, "similarity": 3000.0},
    pkt: {"task": 1.0, "neighbours": 30000.0},
    cc: {"task": 1.0, "correlation": 100.0},
    irg: {"task": 1.0, "graph": 1.0},
    lcc: {"task": 1.0, "local": 1.0},
    cskd: {"task": 0.9, "kd": 1e-6, "features": 1.0, "logits": 1.0},
}
PRESETS = pytest.mark.parametrize("preset", EVERY, ids=lambda preset: preset.__name__)


@PRESETS
def test_weights_from_start_to_end(preset: Callable[[], Objective]) -> None:
    """None of these papers has phases; the weights only mean something together with its reduction."""
    for progress in (0.0, 0.5, 1.0):
        assert preset().weights(progress) == pytest.approx(EVERY[preset])


@PRESETS
def test_each_call_is_fresh_and_gives_a_value(preset: Callable[[], Objective]) -> None:
    """Two runs in one process must not share projectors."""
    first, second = preset(), preset()
    for objective in (first, second):
        objective.bind(STUDENT, TEACHER)
        assert objective(*toy_scene().parts()).loss.isfinite()
    assert not {id(module) for module in first.modules()} & {id(module) for module in second.modules()}


@PRESETS
def test_it_learns_from_a_real_pair_of_models(preset: Callable[[], Objective]) -> None:
    """Of other depth and width: what the presets are for."""
    student, teacher = toy_bert(layers=2, width=16), toy_bert(layers=4, width=24, seed=1)
    objective, inputs = preset(), text_inputs()
    objective.bind(Anatomy.of(student), Anatomy.of(teacher))
    ours, theirs = (
        capture(model, inputs, needs)[1] for model, needs in zip((student, teacher), objective.needs(), strict=True)
    )
    result = objective(ours, theirs, Batch.of(inputs | {"labels": torch.tensor([0, 1, 2])}))
    result.loss.backward()
    assert all(term > 0 for term in result.terms.values())
    learnt = [p.grad for name, p in student.named_parameters() if "encoder" in name and "weight" in name]
    assert any(gradient is not None and gradient.any() for gradient in learnt)


def test_weights_within_the_losses() -> None:
    """Those of the reference codes, in the reduction that they are made for."""
    graph = irg()["graph"]
    assert isinstance(graph, InstanceGraphLoss)
    assert (graph.vertices, graph.edges, graph.transformations) == (0.1, 5.0, 5.0)
    features, logits = cskd()["features"], cskd()["logits"]
    assert isinstance(features, CategoryStructureLoss)
    assert isinstance(logits, CategoryStructureLoss)
    assert (features.target, features.correct_only, features.compactness) == ("features", True, 0.0)
    assert (logits.target, logits.correct_only, logits.compactness) == ("logits", False, 0.1)
    for loss in (features, logits):
        assert (loss.inter, loss.intra, loss.reduction) == (0.04, 0.002, "paper")


def test_one_hop_of_stepwise_distillation_is_rkd_and_soft_targets() -> None:
    """With the soft targets off it is RKD: a hop adds what the teacher says of each row alone."""
    scene = toy_scene()
    hop, relations = stepwise_rkd(), rkd()
    kd = hop["kd"]
    assert isinstance(kd, SoftTargetLoss)
    assert kd.temperature(0.0) == 4.0
    for objective in (hop, relations):
        objective.bind(STUDENT, TEACHER)
    torch.testing.assert_close(hop(*scene.parts()).loss - kd(*scene.parts()), relations(*scene.parts()).loss)
