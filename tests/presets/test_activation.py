"""Presets of activation knowledge: their terms and weights through a run, and what reaches their losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from toy_representations import STUDENT, TEACHER, TOKENS, toy_scene

from hfdistill.losses.feature.activation_attention import ActivationAttentionLoss
from hfdistill.losses.feature.channel import ChannelLoss
from hfdistill.losses.feature.hidden_state import HiddenStateLoss
from hfdistill.losses.feature.knowledge_projection import KnowledgeProjectionLoss
from hfdistill.losses.feature.neuron_selectivity import NeuronSelectivityLoss
from hfdistill.losses.feature.variational import VariationalLoss
from hfdistill.losses.response.soft_target import SoftTargetLoss
from hfdistill.objective import Objective
from hfdistill.presets.activation import at, cwd, fitnets, fsp, kpn, nst, structured, vid

STRUCTURED = {"task": 1.0, "pixel": 10.0, "pair": 1.0, "holistic": 0.1}
WEIGHTS: dict[Callable[[], Objective], dict[float, dict[str, float]]] = {
    fitnets: {
        0.0: {"task": 0.0, "kd": 0.0, "hint": 1.0},
        0.499: {"task": 0.0, "kd": 0.0, "hint": 1.0},
        0.5: {"task": 1.0, "kd": 4.0, "hint": 0.0},
        0.75: {"task": 1.0, "kd": 2.5, "hint": 0.0},
        1.0: {"task": 1.0, "kd": 1.0, "hint": 0.0},
    },
    at: {0.0: {"task": 1.0, "attention": 1000.0}, 1.0: {"task": 1.0, "attention": 1000.0}},
    fsp: {
        0.0: {"task": 0.0, "flow": 50.0},
        0.11: {"task": 0.0, "flow": 50.0},
        0.112: {"task": 1.0, "flow": 0.0},
        1.0: {"task": 1.0, "flow": 0.0},
    },
    nst: {0.0: {"task": 1.0, "selectivity": 50.0}, 1.0: {"task": 1.0, "selectivity": 50.0}},
    vid: {0.0: {"task": 1.0, "information": 1.0}, 1.0: {"task": 1.0, "information": 1.0}},
    kpn: {0.0: {"task": 1.0, "projection": 1.0}, 0.9: {"task": 1.0, "projection": 0.0}},
    cwd: {0.0: {"task": 1.0, "channel": 50.0}, 1.0: {"task": 1.0, "channel": 50.0}},
    structured: {0.0: STRUCTURED, 1.0: STRUCTURED},
}
NAMED = pytest.mark.parametrize("preset", WEIGHTS, ids=lambda preset: preset.__name__)


@NAMED
def test_terms_and_weights_through_the_run(preset: Callable[[], Objective]) -> None:
    """They are the method: a loss at another time, or as heavy as another reduction needs it, is another one."""
    objective = preset()
    for progress, weights in WEIGHTS[preset].items():
        assert objective.weights(progress) == pytest.approx(weights)


@NAMED
def test_every_phase_learns_from_a_pair_of_other_width_and_depth(preset: Callable[[], Objective]) -> None:
    """What a preset is for; and all that it trains is trained in one of its phases."""
    objective = preset()
    objective.bind(STUDENT, TEACHER)
    for progress in WEIGHTS[preset]:
        scene = toy_scene().watched()
        scene.batch.progress = progress
        result = objective(*scene.parts())
        assert result.loss.isfinite()
        assert result.loss > 0
        result.loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_options_reach_their_losses() -> None:
    """A keyword that goes nowhere is a wish that the run does not fulfil."""
    hints = fitnets(switch=0.2, temperature=5.0, soft=8.0, last_soft=2.0, layers="last")
    assert hints.weights(0.2) == {"task": 1.0, "kd": 8.0, "hint": 0.0}
    assert hints.weights(1.0)["kd"] == 2.0
    soft, hint = hints["kd"], hints["hint"]
    assert isinstance(soft, SoftTargetLoss)
    assert isinstance(hint, HiddenStateLoss)
    assert (soft.temperature(0.0), soft.divergence, soft.scale_by_temperature) == (5.0, "cross_entropy", False)
    assert hint.layers.name == "last"
    for objective, name, kind in (
        (at(beta=2.0, layers="last"), "attention", ActivationAttentionLoss),
        (nst(beta=2.0, layers="last"), "selectivity", NeuronSelectivityLoss),
        (vid(beta=2.0, layers="last"), "information", VariationalLoss),
    ):
        loss = objective[name]
        assert isinstance(loss, kind)
        assert loss.layers.name == "last"
        assert loss.weight(0.0) == 2.0
    selectivity = nst(kernel="linear")["selectivity"]
    assert isinstance(selectivity, NeuronSelectivityLoss)
    assert selectivity.kernel == "linear"
    assert fsp(beta=2.0, switch=0.5).weights(0.4) == {"task": 0.0, "flow": 2.0}
    projection = kpn(alpha=2.0, selection=0.25, end=0.5)["projection"]
    assert isinstance(projection, KnowledgeProjectionLoss)
    assert (projection.selection, projection.weight(0.49), projection.weight(0.5)) == (0.25, 2.0, 0.0)
    channel = cwd(beta=3.0, temperature=2.0, knowledge="logits")["channel"]
    assert isinstance(channel, ChannelLoss)
    assert (channel.weight(0.0), channel.temperature, channel.knowledge) == (3.0, 2.0, "logits")


def test_fitnets_hints_are_for_intermediate_layers() -> None:
    """Of two layers the first one, the middle, learns from the teacher's middle."""
    hint = fitnets()["hint"]
    assert isinstance(hint, HiddenStateLoss)
    hint.bind(STUDENT, TEACHER)
    assert hint.pairs == ((1, 2),)


def test_structured_without_its_critic_takes_tokens() -> None:
    """It was made for a class at each place, where the critic of rows has nothing to score."""
    student, teacher = (replace(side, head=TOKENS) for side in (STUDENT, TEACHER))
    objective = structured(holistic=0.0)
    assert list(objective) == ["task", "pixel", "pair"]
    objective.bind(student, teacher)
    assert objective(*toy_scene(student, teacher).parts()).loss > 0
    with pytest.raises(ValueError, match=r"objective term 'holistic': HolisticLoss scores one distribution per row"):
        structured().bind(student, teacher)


@pytest.mark.parametrize("preset", [fitnets, fsp])
def test_a_switch_beyond_the_run_is_refused(preset: Callable[..., Objective]) -> None:
    """A switch at step 500 would never come."""
    with pytest.raises(ValueError, match=r"within \[0, 1\]|begin < finish <= 1"):
        preset(switch=500)
