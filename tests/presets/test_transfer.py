"""Presets of transfer between layers: what each builds, and when it learns what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from toy_models import text_inputs, toy_bert
from toy_representations import STUDENT, TEACHER, toy_anatomy, toy_scene

from hfdistill.anatomy import Anatomy
from hfdistill.capture import capture
from hfdistill.layer_map import LayerMap
from hfdistill.losses.feature.feature_map import FeatureMapLoss
from hfdistill.losses.feature.hidden_state import HiddenStateLoss
from hfdistill.losses.feature.kernel_alignment import KernelAlignmentLoss
from hfdistill.losses.relation.context import TokenRelationLoss
from hfdistill.losses.response.soft_target import SoftTargetLoss
from hfdistill.objective import Objective
from hfdistill.presets.transfer import cka, ckd, dynabert_depth, dynabert_width, mobilebert
from hfdistill.representations import Batch, Needs

PRESETS: tuple[Callable[..., Objective], ...] = (cka, ckd, mobilebert, dynabert_width, dynabert_depth)
EVERY = pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.__name__)
CKD = {"task": 0.1, "kd": 0.9, "word_pair": 100.0, "word_angle": 1000.0, "layer_pair": 100.0, "layer_angle": 1000.0}
TRANSFER = {"feature_map": 100.0, "feature_mean": 5000.0, "feature_variance": 5.0, "attention": 1.0}
PHASES: dict[Callable[..., Objective], tuple[tuple[float, dict[str, float]], ...]] = {
    cka: ((0.0, {"task": 0.5, "kd": 0.5, "alignment": 1.0}),),
    ckd: ((0.0, CKD),),
    mobilebert: ((0.0, TRANSFER), (0.31, TRANSFER), (0.32, {"task": 0.5, "kd": 0.5})),
    dynabert_width: ((0.0, {"kd": 1.0, "hidden": 0.1}),),
    dynabert_depth: ((0.0, {"kd": 1.0, "hidden": 1.0}),),
}


def soft(objective: Objective) -> SoftTargetLoss:
    """The soft-target loss."""
    loss = objective["kd"]
    assert isinstance(loss, SoftTargetLoss)
    return loss


@EVERY
def test_weights_are_the_papers(preset: Callable[..., Objective]) -> None:
    """At the start, at the end, and where phases change."""
    objective = preset()
    phases = PHASES[preset]
    for progress, weights in (*phases, (1.0, phases[-1][1])):
        running = {name: weight for name, weight in objective.weights(progress).items() if weight}
        assert running == pytest.approx(weights)


@EVERY
def test_a_bound_preset_gives_finite_values(preset: Callable[..., Objective]) -> None:
    """On a student that is narrower and shallower than its teacher, with default arguments, in every phase."""
    objective = preset()
    objective.bind(STUDENT, TEACHER)
    for progress, _ in PHASES[preset]:
        scene = toy_scene()
        scene.batch.progress = progress
        result = objective(*scene.parts())
        assert result.loss.isfinite()
        assert all(value > 0 for value in result.terms.values())


@EVERY
def test_it_learns_from_a_real_pair_of_models(preset: Callable[..., Objective]) -> None:
    """What is captured of BERT must be what the losses ask for."""
    student, teacher = toy_bert(layers=2, width=16), toy_bert(layers=4, width=24, seed=1)
    objective = preset()
    objective.bind(Anatomy.of(student), Anatomy.of(teacher))
    inputs = text_inputs()
    for progress, _ in PHASES[preset]:
        shown = [
            capture(model, inputs, needs)[1]
            for model, needs in zip((student, teacher), objective.needs(progress), strict=True)
        ]
        batch = Batch.of(inputs | {"labels": torch.tensor([0, 1, 2])}, progress=progress)
        objective(*shown, batch).loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


@EVERY
def test_each_call_builds_a_fresh_objective(preset: Callable[..., Objective]) -> None:
    """Two runs in one process must not share projectors."""
    first, second = preset(), preset()
    assert not {id(module) for module in first.modules()} & {id(module) for module in second.modules()}


@pytest.mark.parametrize(
    ("build", "options", "weights"),
    [
        (cka, {"alpha": 0.25, "beta": 3.0}, {"task": 0.75, "kd": 0.25, "alignment": 3.0}),
        (
            ckd,
            {"alpha": 0.7, "pair": 1.0, "angle": 10.0},
            CKD
            | {"task": 0.3, "kd": 0.7}
            | dict.fromkeys(("word_pair", "layer_pair"), 1.0)
            | dict.fromkeys(("word_angle", "layer_angle"), 10.0),
        ),
        (dynabert_width, {"soft": 2.0, "hidden": 3.0}, {"kd": 2.0, "hidden": 3.0}),
        (dynabert_depth, {"soft": 2.0, "hidden": 3.0}, {"kd": 2.0, "hidden": 3.0}),
    ],
)
def test_options_reach_their_weights(
    build: Callable[..., Objective], options: dict[str, Any], weights: dict[str, float]
) -> None:
    """A keyword that goes nowhere is a wish that the run does not fulfil."""
    assert build(**options).weights(0.5) == pytest.approx(weights)


def test_options_reach_their_losses() -> None:
    """The same for what is no weight."""
    assert soft(cka(temperature=3.0)).temperature(0.0) == 3.0
    assert soft(ckd(temperature=3.0)).temperature(0.0) == 3.0
    assert soft(mobilebert(temperature=3.0)).temperature(0.0) == 3.0
    alignment, angle = cka(debiased=True)["alignment"], ckd(window=5)["word_angle"]
    assert isinstance(alignment, KernelAlignmentLoss)
    assert alignment.debiased
    assert isinstance(angle, TokenRelationLoss)
    assert (angle.relation, angle.window) == ("angle", 5)


def test_soft_losses_have_the_reductions_that_the_weights_are_for() -> None:
    """Cross-entropies without T^2, and DynaBERT's divided by the number of classes too."""
    for build, reduction in ((ckd, "mean"), (mobilebert, "mean"), (dynabert_width, "elementmean")):
        loss = soft(build())
        assert (loss.divergence, loss.reduction, loss.scale_by_temperature) == ("cross_entropy", reduction, False)
    assert soft(dynabert_depth()).temperature(0.0) == 1.0


def test_mobilebert_lets_the_layers_take_turns_until_the_switch() -> None:
    """A transfer that ends before the weights do would leave steps in which nothing is learnt, or the reverse."""
    objective = mobilebert(switch=0.6, alpha=0.2)
    for name in ("feature_map", "feature_mean", "feature_variance"):
        loss = objective[name]
        assert isinstance(loss, FeatureMapLoss)
        assert loss.progressive == 0.6
    assert objective.weights(0.59)["task"] == 0.0
    assert objective.weights(0.6) == pytest.approx(dict.fromkeys(TRANSFER, 0.0) | {"task": 0.8, "kd": 0.2})
    objective.bind(STUDENT, TEACHER)
    assert len(list(objective.parameters())) == 2  # one projection in all, ours: the paper's widths agree
    assert objective.needs(0.7) == (Needs(logits=True), Needs(logits=True))
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        mobilebert(switch=500)


def test_dynaberts_layers_are_all_and_those_that_it_keeps() -> None:
    """The embedding output is among them; a depth that the multiplier does not give is refused."""
    width, depth = dynabert_width(), dynabert_depth(0.75)
    for objective in (width, depth):
        objective.bind(toy_anatomy(depth=3), toy_anatomy(depth=4))
    hidden = [objective["hidden"] for objective in (width, depth)]
    assert all(isinstance(loss, HiddenStateLoss) for loss in hidden)
    assert [loss.layers for loss in hidden if isinstance(loss, HiddenStateLoss)] == [
        LayerMap.uniform(),
        LayerMap.dynabert(0.75),
    ]
    with pytest.raises(ValueError, match=r"keeps 3 of 4 teacher layers"):
        depth.bind(toy_anatomy(depth=2), toy_anatomy(depth=4))


@pytest.mark.parametrize("build", [cka, ckd, mobilebert])
def test_a_share_is_between_0_and_1(build: Callable[..., Objective]) -> None:
    """At 1.5 the labels would weigh -0.5: the student would learn to be wrong."""
    with pytest.raises(ValueError, match=r"alpha must be a share between 0 and 1, got 1.5"):
        build(alpha=1.5)
