"""Variational information: its predictors, its start, and what weight decay does to it."""

from __future__ import annotations

import math
from typing import cast

import torch
from toy_representations import STUDENT, TEACHER, toy_anatomy, toy_scene
from transformers import Trainer

from hfdistill.functional.variational import variational_information
from hfdistill.losses.feature.variational import VariationalLoss


def bound(width: int = 12) -> VariationalLoss:
    """A loss on two pairs of layers."""
    loss = VariationalLoss()
    loss.bind(STUDENT, toy_anatomy(width, 4))
    return loss


def test_each_pair_has_its_predictor_and_its_variances() -> None:
    """Three maps without bias and one number per channel, all registered: else they are neither moved nor saved."""
    shapes = {name: tuple(value.shape) for name, value in bound().state_dict().items()}
    one = {"mean.0.weight": (12, 8), "mean.2.weight": (12, 12), "mean.4.weight": (12, 12), "variance_bias": (12,)}
    assert shapes == {f"predictors.{pair}.{name}": shape for pair in (0, 1) for name, shape in one.items()}


def test_equal_widths_are_predicted_too() -> None:
    """The predictor is part of the method, not a way to make widths fit."""
    assert len(list(bound(8).parameters())) == 8


def test_the_start_is_a_variance_of_5() -> None:
    """There the loss is half of the squared error over 5, plus log 5."""
    loss, scene = bound(), toy_scene()
    expected = torch.zeros(())
    for predictor, (ours, theirs) in zip(loss.predictors, loss.pairs, strict=True):
        error = predictor(scene.student.hidden_states[ours]) - scene.teacher.hidden_states[theirs]
        assert scene.batch.mask is not None
        expected = expected + (error[scene.batch.mask.bool()].square().mean() / 5 + math.log(5)) / 2
    torch.testing.assert_close(loss(*scene.parts()), expected)


def test_each_pair_is_judged_by_its_own_variance() -> None:
    """One of two layers that is predicted badly must not widen the other."""
    loss, scene = bound(), toy_scene()
    with torch.no_grad():
        for position, predictor in enumerate(loss.predictors):
            predictor.variance_bias.copy_(torch.arange(12.0) - 6 * position)
    values = [
        variational_information(
            predictor(scene.student.hidden_states[ours]),
            scene.teacher.hidden_states[theirs],
            predictor.variance_bias,
            scene.batch.mask,
        )
        for predictor, (ours, theirs) in zip(loss.predictors, loss.pairs, strict=True)
    ]
    torch.testing.assert_close(loss(*scene.parts()), torch.stack(values).sum())
    at_start = VariationalLoss(variance=2.0)
    prediction = loss.predictors[0](scene.student.hidden_states[1])
    target = scene.teacher.hidden_states[2]
    scale = torch.full((12,), at_start.scale)
    expected = variational_information(prediction, target, scale, scene.batch.mask)
    torch.testing.assert_close(at_start.compare(prediction, target, scene.batch.mask), expected)


def test_the_trainer_decays_the_predictor_but_no_variance() -> None:
    """Decay would pull every variance to softplus(0); the Trainer spares what its rule finds "bias" in."""
    decayed = set(Trainer.get_decay_parameter_names(cast(Trainer, None), bound()))  # it does not look at itself
    spared = {name for name, _ in bound().named_parameters()} - decayed
    assert spared == {"predictors.0.variance_bias", "predictors.1.variance_bias"}


def test_learning_it_lowers_it_below_0() -> None:
    """A likelihood is no distance: a run whose loss turns negative is not broken."""
    loss, scene = bound(), toy_scene(STUDENT, TEACHER, lengths=(2, 1))
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        value = loss(*scene.parts())
        value.backward()
        optimizer.step()
    assert value < 0
