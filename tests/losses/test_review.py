"""Knowledge review: levels fused from the deepest up, on text and on images, with and without a pooled level."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import golden
import pytest
import torch
from toy_representations import STUDENT, TEACHER, toy_anatomy, toy_scene

from hfdistill.functional.review import gated_fusion, hierarchical_context
from hfdistill.losses.feature.review import ReviewLoss
from hfdistill.losses.pooling import pooled_vector
from hfdistill.representations import Batch, Representations

PAIRS = ((1, 2), (2, 4))


def bound(pooled: str = "none", layers: object = PAIRS) -> ReviewLoss:
    """The loss between the toy student and the toy teacher."""
    torch.manual_seed(0)
    loss = ReviewLoss(layers, pooled)  # type: ignore[arg-type]
    loss.bind(STUDENT, TEACHER)
    return loss


@pytest.mark.data
def test_a_level_gives_the_golden_value(shared: Path) -> None:
    """The mask and the layout reach the formula: text is a line."""
    case = next(case for case in golden.read_cases(shared / "methods" / "golden.json") if case["id"] == "hcl/1d")
    student, teacher = (torch.tensor(case["inputs"][side], dtype=torch.float64) for side in "st")
    assert bound().compare(student, teacher, None).item() == pytest.approx(case["expected"], rel=1e-9)


@pytest.mark.parametrize("pooled", ["none", "cls", "mean", "last"])
def test_levels_are_fused_from_the_deepest_up(pooled: str) -> None:
    """The method written out: each level is normalised, fused with what the deeper ones passed on, and compared."""
    loss, scene = bound(pooled), toy_scene()
    mask = scene.batch.mask
    assert mask is not None
    expected, passed = torch.zeros(()), None
    if pooled != "none":
        level = loss.levels[-1]
        vector, target = (
            pooled_vector(states, mask, pooled)[:, None]
            for states in (scene.student.hidden_states[2], scene.teacher.hidden_states[4])
        )
        passed = level.norm(level.inner(vector))
        expected = (level.outer(passed) - target).square().mean()
    for position in (1, 0):
        level, (ours, theirs) = loss.levels[position], PAIRS[position]
        states = level.norm(level.inner(scene.student.hidden_states[ours] * mask[..., None]))
        if passed is not None:
            passed = passed.expand_as(states)
            states = gated_fusion(states, passed, level.gates.weight, level.gates.bias)
        passed = states
        expected = expected + hierarchical_context(level.outer(passed), scene.teacher.hidden_states[theirs], mask)
    torch.testing.assert_close(loss(*scene.parts()), expected)
    assert loss.levels[-1].gates is None
    assert loss.count(scene.batch) == 3


def test_a_shallow_teacher_layer_teaches_deep_student_layers_too() -> None:
    """That is the review: what the shallow level asks for changes what the deep layer learns."""
    loss, gradients = bound(), []
    for gain in (1.0, 3.0):
        scene = toy_scene().watched()
        scene.teacher.hidden_states[2].data.mul_(gain)
        loss(*scene.parts()).backward()
        gradients.append(scene.student.hidden_states[2].grad)
    assert not torch.equal(*gradients)


def test_the_order_of_the_pairs_does_not_matter() -> None:
    """Levels go by depth: a map written from the top down must not turn the review round."""
    forwards, backwards = bound(), bound(layers=PAIRS[::-1])
    assert backwards.pairs == PAIRS
    torch.testing.assert_close(backwards(*toy_scene().parts()), forwards(*toy_scene().parts()))


def test_the_embedding_output_is_no_level_by_default() -> None:
    """The paper reviews stages of the network."""
    assert bound(layers="uniform(embeddings=False)").pairs == ReviewLoss().layers.resolve(2, 4) == PAIRS


@pytest.mark.parametrize("pooled", ["none", "cls"])
def test_images_are_pooled_on_both_axes_without_their_class_tokens(pooled: str) -> None:
    """A teacher with smaller patches is averaged to the student's grid first."""
    student, teacher = (
        replace(toy_anatomy(width, depth), prefix_tokens=prefix, grid=(side, side))
        for width, depth, prefix, side in ((8, 2, 1, 3), (12, 4, 2, 6))
    )
    torch.manual_seed(0)
    loss = ReviewLoss(PAIRS, pooled)
    loss.bind(student, teacher)
    shown = Representations(hidden_states={layer: torch.randn(2, 10, 8) for layer in (1, 2)})
    target = Representations(hidden_states={layer: torch.randn(2, 38, 12) for layer in (2, 4)})
    value = loss(shown, target, Batch(2))
    fused, theirs = torch.randn(2, 9, 12), torch.randn(2, 9, 12)
    torch.testing.assert_close(
        loss.compare(fused, theirs, None), hierarchical_context(fused, theirs, sides=(3, 3)), rtol=0, atol=0
    )
    for side in (shown, target):
        for states in side.hidden_states.values():
            states[:, 0] += 5
    assert torch.equal(loss(shown, target, Batch(2)), value) == (pooled == "none")


def test_grids_need_not_be_square() -> None:
    """4 x 6 patches averaged to 2 x 3: six places that only the smaller model's layout can name."""
    student, teacher = (replace(toy_anatomy(width), grid=grid) for width, grid in ((8, (4, 6)), (12, (2, 3))))
    for ours, theirs in ((student, teacher), (teacher, student)):
        loss = ReviewLoss([(1, 1)])
        loss.bind(ours, theirs)
        shown, target = (
            Representations(hidden_states={1: torch.randn(2, 24 if side is student else 6, side.width)})
            for side in (ours, theirs)
        )
        assert loss(shown, target, Batch(2)).isfinite()
        fused, goal = torch.randn(2, 6, 12), torch.randn(2, 6, 12)
        torch.testing.assert_close(
            loss.compare(fused, goal, None), hierarchical_context(fused, goal, sides=(2, 3)), rtol=0, atol=0
        )


def test_padding_of_the_student_may_hold_anything() -> None:
    """A NaN there, times a gradient of 0, would be a NaN in the fusion's weights."""
    loss = bound("mean")
    expected = loss(*toy_scene().parts())
    scene = toy_scene().padded(2, torch.nan, torch.nan).watched()
    value = loss(*scene.parts())
    value.backward()
    torch.testing.assert_close(value, expected)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in loss.parameters())


@pytest.mark.parametrize(("width", "expected"), [(300, 300), (700, 512)])
def test_levels_are_fused_in_at_most_512_channels(width: int, expected: int) -> None:
    """The paper's width; wider ones would cost as much as the student's own layers."""
    loss = ReviewLoss([(1, 1)])
    loss.bind(toy_anatomy(width), toy_anatomy(8))
    assert next(tuple(parameter.shape) for parameter in loss.parameters()) == (expected, width)


def test_an_unknown_pooling_lists_the_accepted_ones() -> None:
    """A misspelt word must not fall back on a default."""
    with pytest.raises(ValueError, match=r"pooled must be one of 'none', 'cls', 'mean', 'last', got 'max'"):
        ReviewLoss(pooled="max")
