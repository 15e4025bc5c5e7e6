"""Published methods by name: what each builds, when it learns what, and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from toy_models import text_inputs, toy_bert
from toy_representations import STUDENT, TEACHER, toy_anatomy, toy_scene

from hfdistill.anatomy import Anatomy
from hfdistill.capture import capture
from hfdistill.layer_map import LayerMap
from hfdistill.losses import AttentionRelationLoss, PatienceLoss, SoftTargetLoss
from hfdistill.losses.relation.attention_relation import MINILM, MINILM_V2
from hfdistill.presets import PRESETS, preset, preset_names
from hfdistill.representations import Batch, Needs
from hfdistill.schedules import Constant

# language models' presets; those of other families are tested in tests/presets/
# preset -> ((from this progress on, name -> weight), ...)
PHASES: dict[str, tuple[tuple[float, dict[str, float]], ...]] = {
    "kd": ((0.0, {"task": 0.1, "kd": 0.9}),),
    "distilbert": ((0.0, {"task": 2.0, "kd": 5.0, "hidden": 1.0}),),
    "pkd": ((0.0, {"task": 0.5, "kd": 0.5, "patience": 100.0}),),
    "pkd_last": ((0.0, {"task": 0.5, "kd": 0.5, "patience": 100.0}),),
    "tinybert": ((0.0, {"hidden": 1.0, "attention": 1.0}), (0.75, {"kd": 1.0})),
    "lrc_bert": ((0.0, {"contrastive": 1.0}), (0.8, {"task": 3.0, "kd": 1.0, "contrastive": 1.0})),
    "minilm": ((0.0, {"relation": 1.0}), (0.5, {"task": 1.0})),
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_term_has_its_turn(name: str) -> None:
    """A term whose weight is never above 0 is a part of the method that is missing."""
    assert preset_names() == list(PRESETS)
    objective = preset(name)
    moments = [objective.weights(step / 200) for step in range(201)]
    scheduled = [term for term in objective if not isinstance(objective[term].weight, Constant)]
    assert all(max(moment[term] for moment in moments) > 0 for term in scheduled)
    assert all(max(moment.values()) > 0 for moment in moments[1:]), "no step may be without a loss"


@pytest.mark.parametrize("name", PHASES)
def test_weights_switch_where_the_docstring_says(name: str) -> None:
    """The phases are the method: a switch at another place, or a loss that goes on, is another method."""
    objective = preset(name)
    starts = [start for start, _ in PHASES[name]]
    ends = [end - 1e-3 for _, end in pairwise(starts)] + [1.0]
    for (start, weights), end in zip(PHASES[name], ends, strict=True):
        for progress in (start, end):
            running = {term: weight for term, weight in objective.weights(progress).items() if weight}
            assert running == pytest.approx(weights)


@pytest.mark.parametrize("name", PRESETS)
def test_each_call_builds_a_fresh_objective(name: str) -> None:
    """Two runs in one process must not share projectors."""
    first, second = preset(name), preset(name)
    for objective in (first, second):
        objective.bind(STUDENT, TEACHER)
    assert not {id(module) for module in first.modules()} & {id(module) for module in second.modules()}
    assert not {id(value) for value in first.parameters()} & {id(value) for value in second.parameters()}


@pytest.mark.parametrize("name", PHASES)
def test_a_preset_learns_from_a_real_pair_of_models(name: str) -> None:
    """Every phase, on models of other depth and width: what the presets are for."""
    student, teacher = toy_bert(layers=2, width=16), toy_bert(layers=4, width=24, seed=1)
    objective = preset(name)
    objective.bind(Anatomy.of(student), Anatomy.of(teacher))
    inputs = text_inputs()
    for progress, _ in PHASES[name]:
        batch = Batch.of(inputs | {"labels": torch.tensor([0, 1, 2])}, progress=progress)
        ours, theirs = (
            capture(model, inputs, needs)[1]
            for model, needs in zip((student, teacher), objective.needs(progress), strict=True)
        )
        result = objective(ours, theirs, batch)
        result.loss.backward()
        assert result.loss > 0
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_options_reach_their_losses() -> None:
    """A keyword that goes nowhere is a wish that the run does not fulfil."""
    kd = preset("kd", temperature=2.0, alpha=0.25)
    assert kd.weights(0.0) == {"task": 0.75, "kd": 0.25}
    assert soft(kd, "kd").temperature(0.0) == 2.0
    distilbert = preset("distilbert", temperature=3.0, soft=1.0, hard=2.0, cosine=3.0)
    assert distilbert.weights(0.0) == {"task": 2.0, "kd": 1.0, "hidden": 3.0}
    assert soft(distilbert, "kd").temperature(0.0) == 3.0
    assert preset("pkd", alpha=0.2, beta=10.0).weights(0.0) == pytest.approx({"task": 0.8, "kd": 0.2, "patience": 10})
    assert preset("tinybert", switch=0.5, temperature=2.0).weights(0.5)["kd"] == 1.0
    lrc_bert = preset("lrc_bert", switch=0.3, contrastive=2.0, soft=3.0, hard=4.0)
    assert lrc_bert.weights(0.3) == {"task": 4.0, "kd": 3.0, "contrastive": 2.0}
    assert preset("minilm", switch=0.9).weights(0.8) == {"task": 0.0, "relation": 1.0}


def soft(objective: Any, name: str) -> SoftTargetLoss:
    """The soft-target loss of this name."""
    loss = objective[name]
    assert isinstance(loss, SoftTargetLoss)
    return loss


def test_patience_has_the_papers_two_maps() -> None:
    """PKD-Skip and PKD-Last are two methods."""
    skip, last = preset("pkd")["patience"], preset("pkd_last")["patience"]
    assert isinstance(skip, PatienceLoss)
    assert isinstance(last, PatienceLoss)
    assert (skip.layers, last.layers) == (LayerMap.skip(), LayerMap.last(final=False))
    named = preset("pkd", layers="last")["patience"]
    assert isinstance(named, PatienceLoss)
    assert named.layers == last.layers


def test_minilm_has_two_versions() -> None:
    """The first compares attention and values, the second any relation heads."""
    for version, relations in ((1, MINILM), (2, MINILM_V2)):
        loss = preset("minilm", version=version, relation_heads=4)["relation"]
        assert isinstance(loss, AttentionRelationLoss)
        assert tuple("-".join(relation) for relation in loss.relations) == relations
        assert loss.relation_heads == 4
    with pytest.raises(ValueError, match=r"MiniLM has the versions 1 and 2, got 3"):
        preset("minilm", version=3)


def test_a_phase_without_need_of_the_teacher_needs_none() -> None:
    """In MiniLM's second half the teacher's pass would be paid for nothing."""
    objective = preset("minilm")
    objective.bind(STUDENT, TEACHER)
    assert objective.needs(0.6)[1] == Needs()
    assert not objective.needs(0.4)[0].logits


def test_tinybert_learns_no_labels_and_shares_one_projection() -> None:
    """Both are the paper's: one W for all layers, and soft labels only."""
    objective = preset("tinybert")
    objective.bind(STUDENT, TEACHER)
    assert "task" not in list(objective)
    assert len(list(objective.parameters())) == 2
    scene = toy_scene()
    scene.batch.labels = None
    scene.batch.progress = 0.9
    assert objective(*scene.parts()).loss > 0


def test_an_unknown_preset_lists_the_known_ones_nearest_first() -> None:
    """A misspelt name is one letter from the right one."""
    with pytest.raises(ValueError, match=r"unknown preset 'tinybrt'. Accepted, nearest first: tinybert, "):
        preset("tinybrt")


def test_an_unknown_option_lists_the_accepted_ones_nearest_first() -> None:
    """Swallowed, it would be a run with other settings than the user believes."""
    with pytest.raises(ValueError, match=r"preset 'kd' takes no 'temprature'.* nearest first: temperature, alpha"):
        preset("kd", temprature=2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": "0.5"}, r"preset 'kd' takes alpha as float, got '0.5' \(str\)"),
        ({"temperature": True}, r"preset 'kd' takes temperature as float, got True \(bool\)"),
        ({"temperature": None}, r"takes temperature as float, got None"),
    ],
)
def test_a_value_of_another_type_is_refused(options: dict[str, Any], message: str) -> None:
    """Values come from YAML, where quotes and `yes` change types unseen."""
    with pytest.raises(TypeError, match=message):
        preset("kd", **options)


@pytest.mark.parametrize("name", ["kd", "pkd", "pkd_last"])
@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_a_share_is_between_0_and_1(name: str, alpha: float) -> None:
    """At 1.5 the labels would weigh -0.5: the student would learn to be wrong."""
    with pytest.raises(ValueError, match=rf"alpha must be a share between 0 and 1, got {alpha}: the labels get"):
        preset(name, alpha=alpha)


@pytest.mark.parametrize("name", ["tinybert", "lrc_bert", "minilm"])
def test_a_switch_beyond_the_run_is_refused(name: str) -> None:
    """A switch at step 500 would never come."""
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        preset(name, switch=500)


def test_temperatures_must_be_positive() -> None:
    """The loss refuses them; the preset must not hide it."""
    with pytest.raises(ValueError, match=r"temperature must be above 0, got 0"):
        preset("kd", temperature=0)


def test_models_that_do_not_fit_name_the_term() -> None:
    """TinyBERT needs equal heads; the message must say which of its losses does."""
    with pytest.raises(ValueError, match=r"objective term 'attention': AttentionMapLoss compares head by head"):
        preset("tinybert").bind(STUDENT, toy_anatomy(width=12, depth=4, heads=4))
