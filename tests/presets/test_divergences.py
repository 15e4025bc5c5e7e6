"""Presets for language models: the terms, weights and settings that each builds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from toy_representations import STUDENT, TEACHER, TOKENS, toy_anatomy, toy_scene

from hfdistill.losses.response.cross_vocabulary import UniversalLogitLoss
from hfdistill.losses.response.divergence import JensenShannonLoss, ReverseKLLoss, SkewedKLLoss
from hfdistill.losses.response.top_classes import TopKLoss
from hfdistill.objective import Objective
from hfdistill.presets.divergences import distillm, gkd, reverse_kl, top_k, uld

WEIGHTS: dict[Callable[..., Objective], dict[str, float]] = {
    reverse_kl: {"task": 0.0, "kd": 1.0},
    gkd: {"task": 0.0, "kd": 1.0},
    distillm: {"task": 0.0, "kd": 1.0},
    uld: {"task": 1.0, "kd": 1.5},
    top_k: {"task": 0.5, "kd": 0.5},
}
EVERY = pytest.mark.parametrize("preset", WEIGHTS, ids=lambda preset: preset.__name__)


@EVERY
def test_weights_are_those_of_the_docstring(preset: Callable[..., Objective]) -> None:
    """The weights are the method, from the first step to the last."""
    for progress in (0.0, 1.0):
        assert preset().weights(progress) == WEIGHTS[preset]


@EVERY
def test_a_preset_learns_from_a_larger_teacher(preset: Callable[..., Objective]) -> None:
    """With default arguments, on rows and on tokens: what a user tries first."""
    for head in (STUDENT.head, TOKENS):
        student, teacher = toy_anatomy(head=head), toy_anatomy(width=12, depth=4, head=head)
        objective = preset()
        objective.bind(student, teacher)
        scene = toy_scene(student, teacher).watched()
        result = objective(*scene.parts())
        result.loss.backward()
        assert result.loss.isfinite()
        assert result.loss > 0
        assert scene.student.logits is not None
        assert scene.student.logits.grad is not None
        assert scene.student.logits.grad.abs().sum() > 0


def test_settings_reach_their_losses() -> None:
    """A keyword that goes nowhere is a wish that the run does not fulfil."""
    reverse, jensen_shannon, skewed, universal, top = (
        objective["kd"]
        for objective in (
            reverse_kl(temperature=2.0, alpha=0.25),
            gkd(beta=0.1, temperature=2.0, alpha=0.25),
            distillm("reverse", skew=0.2, temperature=2.0, alpha=0.25),
            uld(temperature=2.0, soft=0.25, hard=2.0, top=7),
            top_k(k=7, missing="tail", temperature=2.0, alpha=0.25),
        )
    )
    assert isinstance(reverse, ReverseKLLoss)
    assert isinstance(jensen_shannon, JensenShannonLoss)
    assert isinstance(skewed, SkewedKLLoss)
    assert isinstance(universal, UniversalLogitLoss)
    assert isinstance(top, TopKLoss)
    for loss in (reverse, jensen_shannon, skewed, universal, top):
        assert (loss.weight(0.0), loss.temperature(0.0)) == (0.25, 2.0)
    assert jensen_shannon.beta == 0.1
    assert (skewed.direction, skewed.alpha, skewed.form) == ("reverse", 0.2, "kl")
    assert universal.top == 7
    assert (top.k, top.missing, top.scale_by_temperature) == (7, "tail", True)
    assert uld(hard=2.0).weights(0.0)["task"] == 2.0
    for preset in (reverse_kl, gkd, distillm, top_k):
        assert preset(alpha=0.25).weights(0.0) == {"task": 0.75, "kd": 0.25}
        with pytest.raises(ValueError, match=r"alpha must be a share between 0 and 1, got 1\.5"):
            preset(alpha=1.5)


def test_the_universal_loss_takes_another_number_of_classes() -> None:
    """What the others refuse is what it is for."""
    teacher = toy_anatomy(width=12, depth=4, classes=5)
    objective = uld()
    objective.bind(STUDENT, teacher)
    scene = toy_scene(STUDENT, TEACHER)
    scene.teacher.logits = torch.randn(3, 5)
    assert objective(*scene.parts()).loss.isfinite()
    with pytest.raises(ValueError, match="same number of classes"):
        gkd().bind(STUDENT, teacher)
