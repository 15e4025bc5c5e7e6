"""Feature map transfer as a loss: its parts, its projectors, and the turns of the layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from toy_representations import STUDENT, TEACHER, toy_anatomy, toy_scene

from hfdistill.anatomy import Anatomy
from hfdistill.losses.feature.attention_map import AttentionMapLoss
from hfdistill.losses.feature.feature_map import FeatureMapLoss
from hfdistill.representations import Batch, Representations

PARTS = ("normalized", "mean", "variance")


def bound(student: Anatomy = STUDENT, teacher: Anatomy = TEACHER, **keywords: Any) -> FeatureMapLoss:
    """A loss, bound."""
    loss = FeatureMapLoss(**keywords)
    loss.bind(student, teacher)
    return loss


@pytest.mark.data
@pytest.mark.parametrize("part", PARTS)
def test_each_part_gives_its_golden_value(part: str, shared: Path) -> None:
    """The parts are terms of their own, so that each has a weight: 100, 5000 and 5 in the authors' runs."""
    name = "mobilebert/fmt" if part == "normalized" else "mobilebert/stats"
    case = next(case for case in golden.read_cases(shared / "methods" / "golden.json") if case["id"] == name)
    states = [torch.tensor(case["inputs"][side], dtype=torch.float64) for side in "st"]
    expected = case["expected"] if part == "normalized" else case["expected"][PARTS.index(part) - 1]
    loss = bound(toy_anatomy(6, 1), toy_anatomy(6, 1), part=part)
    student, teacher = (Representations(hidden_states={1: side}) for side in states)
    batch = Batch(4, mask=torch.tensor(case["inputs"]["mask"]))
    assert loss(student, teacher, batch).item() == pytest.approx(expected, rel=1e-9)


def test_embeddings_are_left_out_unless_mapped() -> None:
    """The authors' code transfers the outputs of layers; a part that is not asked for costs no projector."""
    assert bound().pairs == ((1, 2), (2, 4))
    assert bound(layers="uniform").pairs == ((0, 0), (1, 2), (2, 4))


@pytest.mark.parametrize("part", PARTS)
def test_only_feature_maps_of_unequal_widths_are_projected(part: str) -> None:
    """A mean and a variance are two numbers, whatever the width; the paper's student is as wide as its teacher."""
    projected = bound(part=part)
    assert bool(list(projected.parameters())) == (part == "normalized")
    assert not list(bound(teacher=toy_anatomy(depth=4), part=part).parameters())
    assert projected(*toy_scene().parts()) > 0


def test_layers_take_turns() -> None:
    """One layer alone learns in its phase, with 1 / number of layers; afterwards none does."""
    loss = bound(progressive=0.5, shared_projector=True)
    scene = toy_scene()
    for progress, layer in ((0.0, 1), (0.2, 1), (0.25, 2), (0.49, 2), (0.7, None)):
        shown = scene.watched()
        shown.batch.progress = progress
        value = loss(*shown.parts())
        value.backward()
        for other in (1, 2):
            gradient = shown.student.hidden_states[other].grad
            assert (gradient is not None and bool(gradient.any())) == (other == layer)
        if layer is None:
            assert value == 0
            continue
        alone = FeatureMapLoss([(layer, 2 * layer)])
        alone.bind(STUDENT, TEACHER)
        alone.projectors[0].load_state_dict(loss.projectors[0].state_dict())
        torch.testing.assert_close(2 * value, alone(*shown.parts()))


def test_attention_takes_the_same_turns() -> None:
    """Attention and feature map of one layer are learnt together."""
    feature, attention = bound(progressive=0.4, part="mean"), AttentionMapLoss(progressive=0.4)
    attention.bind(STUDENT, TEACHER)
    for progress in (0.0, 0.19, 0.2, 0.39, 0.41):
        scene = toy_scene().watched()
        scene.batch.progress = progress
        feature(*scene.parts()).backward()
        attention(*scene.parts()).backward()
        for layer in (1, 2):
            state, query = scene.student.hidden_states[layer].grad, scene.student.attentions[layer].query
            assert query is not None
            moved = [gradient is not None and bool(gradient.any()) for gradient in (state, query.grad)]
            assert moved[0] == moved[1] == (progress < 0.4 and layer == 1 + (progress >= 0.2))


@pytest.mark.parametrize("loss", [FeatureMapLoss, AttentionMapLoss])
def test_a_share_beyond_the_run_is_refused(loss: Any) -> None:
    """A number of steps would leave the first layer alone for the whole run."""
    with pytest.raises(ValueError, match=r"progressive must be a share of the run above 0 and at most 1, got 240000"):
        loss(progressive=240000)


def test_an_unknown_part_lists_the_accepted_ones() -> None:
    """A misspelt part must not fall back on another."""
    with pytest.raises(ValueError, match=r"part must be one of 'normalized', 'mean', 'variance', got 'gamma'"):
        FeatureMapLoss(part="gamma")
