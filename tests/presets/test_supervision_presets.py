"""Presets of shaped supervision: their terms and weights at the start and the end, and that each of them runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from toy_models import text_inputs, toy_bert
from toy_representations import STUDENT, TEACHER, toy_anatomy, toy_scene

from hfdistill.anatomy import Anatomy
from hfdistill.capture import capture
from hfdistill.losses.feature.adaptive import PrimeAwareLoss
from hfdistill.losses.response.knowledge_adjustment import AdjustedTargetLoss
from hfdistill.losses.response.lightweight_teacher import LightweightTeacherLoss
from hfdistill.losses.response.soft_target import SoftTargetLoss
from hfdistill.objective import Objective
from hfdistill.presets.supervision import conditional_ts, dtd, ka, lw_kd, pad, triplet, unix
from hfdistill.representations import Batch, Needs, Representations

WEIGHTS: dict[str, tuple[Callable[[], Objective], dict[str, float]]] = {
    "conditional_ts": (conditional_ts, {"conditional": 1.0}),
    "ka": (ka, {"kd": 1.0}),
    "dtd": (dtd, {"kd": 1.0}),
    "pad": (pad, {"task": 1.0, "feature": 1.0}),
    "lw_kd": (lw_kd, {"task": 0.1, "kd": 0.9}),
    "triplet": (triplet, {"task": 1.0, "kd": 1.0, "triplet": 2.0}),
    "unix": (unix, {"kd": 1.0}),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_terms_weights_and_a_finite_value(name: str, progress: float) -> None:
    """The weights are the method; a preset must run as it is, on models of other width and depth."""
    make, weights = WEIGHTS[name]
    objective = make()
    assert objective.weights(progress) == pytest.approx(weights)
    objective.bind(STUDENT, TEACHER)
    scene = toy_scene().watched()
    scene.batch.progress = progress
    result = objective(*scene.parts())
    assert set(result.terms) == set(weights)
    assert result.loss.isfinite()
    result.loss.backward()


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_learns_from_a_real_pair_of_classifiers(name: str) -> None:
    """BERT of other depth and width: what capture really gives fits what the losses ask for."""
    student, teacher = toy_bert(layers=2, width=16), toy_bert(layers=4, width=24, seed=1)
    objective = WEIGHTS[name][0]()
    objective.bind(Anatomy.of(student), Anatomy.of(teacher))
    inputs = text_inputs()
    batch = Batch.of(inputs | {"labels": torch.tensor([0, 1, 2])}, progress=0.7)
    ours, theirs = (
        capture(model, inputs, needs)[1] for model, needs in zip((student, teacher), objective.needs(0.7), strict=True)
    )
    objective(ours, theirs, batch).loss.backward()
    assert student.classifier.weight.grad is not None
    assert student.classifier.weight.grad.any()


def test_pad_begins_with_the_plain_squared_difference() -> None:
    """The warm-up: up to the switch the branch, whatever it predicts, has no say and learns nothing."""
    objective = pad(switch=0.25)
    objective.bind(STUDENT, TEACHER)
    loss = objective["feature"]
    assert isinstance(loss, PrimeAwareLoss)
    with torch.no_grad():
        for parameter in loss.branches.parameters():
            parameter.normal_()
    scene = toy_scene()
    values = []
    for progress in (0.0, 0.24, 0.25, 1.0):
        scene.batch.progress = progress
        values.append(loss(*scene.parts()).item())
    assert values[0] == values[1] != values[2] == values[3]


def test_lw_kd_needs_no_teacher() -> None:
    """That is the point of it: it must train where there is none."""
    objective = lw_kd(adversarial=True)
    objective.bind(STUDENT, STUDENT)
    assert objective.needs() == (Needs(logits=True), Needs())
    loss = objective["kd"]
    assert isinstance(loss, LightweightTeacherLoss)
    assert loss.adversarial
    scene = toy_scene()
    assert objective(scene.student, Representations(), scene.batch).loss.isfinite()


def test_settings_reach_the_losses() -> None:
    """A keyword that is not passed on changes nothing, and nobody notices."""
    shifted, dynamic = ka(2.0, "smoothing", 0.3)["kd"], dtd(3.0, "cwsm", 2.0, 4.0, "none")["kd"]
    assert isinstance(shifted, AdjustedTargetLoss)
    assert isinstance(dynamic, AdjustedTargetLoss)
    assert (shifted.temperature(0.0), shifted.adjustment, shifted.epsilon, shifted.dynamic) == (
        2,
        "smoothing",
        0.3,
        None,
    )
    settings = (dynamic.temperature(0.0), dynamic.dynamic, dynamic.beta, dynamic.gamma, dynamic.adjustment)
    assert settings == (3.0, "cwsm", 2.0, 4.0, "none")
    plain = unix(2.0)["kd"]
    assert isinstance(plain, SoftTargetLoss)
    assert plain.temperature(0.0) == 2.0
    with pytest.raises(ValueError, match="alpha must be a share"):
        lw_kd(alpha=1.5)
    with pytest.raises(ValueError, match="which answers for tokens"):
        triplet().bind(toy_anatomy(head="ForTokenClassification"), toy_anatomy(head="ForTokenClassification"))
