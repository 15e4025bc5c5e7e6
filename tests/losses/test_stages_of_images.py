"""Losses between models whose stages differ in width and grid: what is paired, projected, pooled, and refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from toy_models import toy_bert, toy_resnet
from toy_representations import toy_anatomy

from hfdistill.anatomy import Anatomy
from hfdistill.functional.channel_matching import channel_cost, channel_groups, reduced_channels
from hfdistill.functional.feature import flow_of_solution, hidden_mse
from hfdistill.functional.matching import energy
from hfdistill.functional.relation import layer_transformation
from hfdistill.functional.review import gated_fusion, hierarchical_context
from hfdistill.layer_map import LayerMap
from hfdistill.losses import (
    AttendedLayerLoss,
    ChannelMatchingLoss,
    FlowLoss,
    HiddenStateLoss,
    InstanceGraphLoss,
    KnowledgeProjectionLoss,
    LayerRelationLoss,
    PatienceLoss,
    ReviewLoss,
    TokenRelationLoss,
)
from hfdistill.losses.layerwise import mapped_layers
from hfdistill.losses.places import pooled_grid
from hfdistill.representations import Batch, Representations
from hfdistill.vision_stages import VisionStages

ROWS = 3
WIDTHS, SIDES = (4, 6, 8, 10), (8, 4, 2, 2)


def staged(widths: tuple[int, ...] = WIDTHS, sides: tuple[int, ...] = SIDES) -> Anatomy:
    """A convolutional model."""
    grids = tuple((side, side) for side in sides)
    anatomy = toy_anatomy(widths[-1], len(widths) - 1)
    return replace(anatomy, attention="none", grid=grids[-1], stages=VisionStages(widths, grids))


def transformer(width: int = 5, depth: int = 3, side: int = 4) -> Anatomy:
    """A model with a class token."""
    return replace(toy_anatomy(width, depth), prefix_tokens=1, grid=(side, side))


def shown(anatomy: Anatomy, seed: int = 0) -> Representations:
    """Random states and logits of three images."""
    generator = torch.Generator().manual_seed(seed)
    states = {}
    for layer in range(anatomy.depth + 1):
        grid = anatomy.grid_of(layer)
        assert grid is not None
        tokens = anatomy.prefix_tokens + grid[0] * grid[1]
        states[layer] = torch.randn(ROWS, tokens, anatomy.width_of(layer), generator=generator)
    return Representations(torch.randn(ROWS, 3, generator=generator), states)


STUDENT, TEACHER = transformer(), staged()
OURS, THEIRS = shown(STUDENT), shown(TEACHER, seed=1)


def bound(loss: Any, student: Anatomy = STUDENT, teacher: Anatomy = TEACHER) -> Any:
    """The loss, bound with drawn parameters."""
    torch.manual_seed(0)
    loss.bind(student, teacher)
    return loss


def pooled(states: Tensor, side: int, to: int) -> Tensor:
    """The places of a square grid averaged to a smaller one, the class token left out."""
    return pooled_grid(states[:, states.shape[1] - side * side :], (side, side), (to, to))


@pytest.mark.parametrize(
    ("layers", "pairs"),
    [
        ("uniform", ((0, 0), (3, 1), (6, 2), (9, 3), (12, 4))),
        ("skip", ((3, 1), (6, 2), (9, 3))),
        ("last", ((9, 1), (10, 2), (11, 3), (12, 4))),
        ("first", ((1, 1), (2, 2), (3, 3), (4, 4))),
        ("uniform(embeddings=False)", ((3, 1), (6, 2), (9, 3), (12, 4))),
        ("explicit([(-1, -1), (2, 1)])", ((12, 4), (2, 1))),
    ],
)
def test_few_stages_are_spread_over_many_layers(layers: str, pairs: tuple[tuple[int, int], ...]) -> None:
    """A ViT has 12 layers and its convolutional teacher 4 stages: that is no student deeper than its teacher."""
    teacher = staged((4, 5, 6, 7, 8), (8, 8, 4, 2, 1))
    assert mapped_layers(LayerMap.parse(layers), transformer(depth=12), teacher) == pairs


def test_layers_and_stages_are_paired_as_ever_where_there_are_enough() -> None:
    """Only what could not be mapped otherwise is turned round."""
    assert mapped_layers(LayerMap.parse("uniform"), transformer(depth=2), TEACHER) == ((0, 0), (1, 2), (2, 3))
    for student, teacher, layers in (
        (transformer(depth=12), transformer(depth=4), "uniform"),
        (transformer(depth=12), TEACHER, "every(2)"),
        (transformer(depth=12), TEACHER, "dynabert(0.5)"),
    ):
        with pytest.raises(ValueError, match="two student layers would have to share a teacher layer"):
            mapped_layers(LayerMap.parse(layers), student, teacher)


def test_each_pair_is_projected_from_its_own_width_to_its_own() -> None:
    """And compared on the smaller grid of the two, without the class token that a map has not."""
    loss = bound(HiddenStateLoss("uniform"))
    sizes = [(projector.student_width, projector.teacher_width) for projector in loss.projectors]
    assert sizes == [(5, 4), (5, 6), (5, 8), (5, 10)]
    expected = torch.zeros(())
    for layer, side in enumerate(SIDES):
        small = min(side, 4)
        ours = loss.projectors[layer](pooled(OURS.hidden_states[layer], 4, small))
        expected = expected + hidden_mse(ours, pooled(THEIRS.hidden_states[layer], side, small))
    torch.testing.assert_close(loss(OURS, THEIRS, Batch(ROWS)), expected)


def test_a_shared_projector_is_one_for_each_two_widths() -> None:
    """One matrix has one shape; layers of the same widths share theirs, as all layers of a BERT do."""
    teacher = staged((6, 6, 8, 8), SIDES)
    loss = bound(HiddenStateLoss("uniform", shared_projector=True), teacher=teacher)
    assert [projector.teacher_width for projector in loss.projectors] == [6, 8]
    states = torch.randn(2, 5)
    for position, number in enumerate((0, 0, 1, 1)):
        assert torch.equal(loss.project(position, states), loss.projectors[number](states))
    plain = bound(HiddenStateLoss("uniform", shared_projector=True), transformer(), transformer(7, 6))
    assert len(plain.projectors) == 1


@pytest.mark.parametrize("reduction", ["mean", "paper"])
def test_a_model_without_class_token_is_pooled_by_its_mean(reduction: str) -> None:
    """Its own classifier looks at that mean; the first place is a corner of the image."""
    loss = bound(PatienceLoss("uniform(embeddings=False)", reduction=reduction))
    gaps = []
    for position, layer in enumerate((1, 2, 3)):
        ours = loss.projectors[position](OURS.hidden_states[layer][:, 0])
        theirs = THEIRS.hidden_states[layer].mean(1)
        gaps.append((F.normalize(ours, dim=-1) - F.normalize(theirs, dim=-1)).square())
    expected = sum(gap.sum(-1).mean() if reduction == "paper" else gap.mean() / 3 for gap in gaps)
    torch.testing.assert_close(loss(OURS, THEIRS, Batch(ROWS)), expected)


def test_a_flow_is_between_the_smaller_of_two_grids() -> None:
    """Stage 1 has 4 x 4 places and stage 2 has 2 x 2: four of the one lead to one of the other."""
    loss = bound(FlowLoss([(1, 1), (2, 2)]))
    ours = [pooled(loss.projectors[at](OURS.hidden_states[at + 1]), 4, 2) for at in (0, 1)]
    theirs = [pooled(THEIRS.hidden_states[1], 4, 2), THEIRS.hidden_states[2]]
    expected = flow_of_solution(*ours, *theirs)
    torch.testing.assert_close(loss(OURS, THEIRS, Batch(ROWS)), expected)


def test_a_review_is_repeated_over_the_larger_grid() -> None:
    """What a deep stage passes on stands at all the places of the shallow one that it covers."""
    student, teacher = staged((4, 6, 8), (8, 4, 2)), transformer(width=9, depth=2)
    ours, theirs = shown(student), shown(teacher, seed=1)
    loss = bound(ReviewLoss([(1, 1), (2, 2)]), student, teacher)
    shallow, deep = loss.levels
    assert {level.norm.normalized_shape for level in loss.levels} == {(8,)}  # the widest of the levels
    passed = deep.norm(deep.inner(ours.hidden_states[2]))
    expected = hierarchical_context(
        deep.outer(passed), pooled(theirs.hidden_states[2], 4, 2), sides=(2, 2)
    )  # the teacher's 4 x 4 are pooled
    repeated = passed.unflatten(1, (2, 2)).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    fused = shallow.norm(shallow.inner(ours.hidden_states[1]))
    fused = gated_fusion(fused, repeated, shallow.gates.weight, shallow.gates.bias)
    expected = expected + hierarchical_context(shallow.outer(fused), theirs.hidden_states[1][:, 1:], sides=(4, 4))
    torch.testing.assert_close(loss(ours, theirs, Batch(ROWS)), expected)


def test_rows_move_between_stages_in_the_narrower_space() -> None:
    """Neighbouring channels of the wider stage are averaged, as the reference code halves doubled channels."""
    teacher = staged((4, 4, 8), (4, 4, 2))
    theirs = shown(teacher, seed=1)
    loss = bound(InstanceGraphLoss([(1, 1), (2, 2)], vertices=0.0, edges=0.0), teacher=teacher)
    first, second = (OURS.hidden_states[layer].mean(1) for layer in (1, 2))
    narrow = theirs.hidden_states[2].mean(1).unflatten(-1, (4, 2)).mean(-1)
    expected = 5.0 * layer_transformation(first, second, theirs.hidden_states[1].mean(1), narrow)
    torch.testing.assert_close(loss(OURS, theirs, Batch(ROWS)), expected)


def test_layers_of_different_spaces_have_no_distance() -> None:
    """Nothing is padded or projected to make one up; within a layer tokens have distances on any model."""
    with pytest.raises(ValueError, match=r"layers \[0, 1, 2, 3\] of toy with the widths \[4, 6, 8, 10\].*no distance"):
        LayerRelationLoss().bind(STUDENT, TEACHER)
    assert bound(TokenRelationLoss())(OURS, THEIRS, Batch(ROWS)) > 0


def test_every_layer_meets_every_stage_on_the_smaller_grid() -> None:
    """The method written out, pair by pair; layers of one grid are computed together."""
    loss = bound(AttendedLayerLoss(width=7))
    ours = [OURS.hidden_states[layer] for layer in (1, 2, 3)]
    theirs = [THEIRS.hidden_states[layer] for layer in (1, 2, 3)]
    means = [[state[:, 1:].mean(1) for state in ours], [state.mean(1) for state in theirs]]
    attention = loss.attention(*means, None)  # (B, T, S)
    expected = torch.zeros(())
    for t, target in enumerate(theirs):
        side = SIDES[t + 1]
        for s, state in enumerate(ours):
            maps = [
                F.normalize(pooled(energy(states)[..., None], was, min(side, 4))[..., 0], dim=1)
                for states, was in ((state, 4), (target, side))
            ]
            expected = expected + (attention[:, t, s] * (maps[0] - maps[1]).square().mean(1)).mean()
    torch.testing.assert_close(loss(OURS, THEIRS, Batch(ROWS)), expected)


def test_each_stage_has_an_assignment_of_its_own_channels() -> None:
    """Stages of 6, 8 and 10 channels give two and more to each of the student's three."""
    student = transformer(width=3)
    ours = shown(student)
    loss = bound(ChannelMatchingLoss(update_every=1, cost_batches=1), student)
    value, expected = loss(ours, THEIRS, Batch(ROWS)), torch.zeros(())
    for layer, side in ((1, 4), (2, 2), (3, 2)):
        own, other = pooled(ours.hidden_states[layer], 4, side), THEIRS.hidden_states[layer]
        groups = channel_groups(channel_cost(own, other))
        assert groups.shape == (3, WIDTHS[layer] // 3)
        expected = expected + hidden_mse(own, reduced_channels(other, groups))
    torch.testing.assert_close(value, expected)
    with pytest.raises(ValueError, match=r"not wider than its teacher, got 7 and 6"):
        ChannelMatchingLoss().bind(transformer(width=7), TEACHER)


def test_each_candidate_has_a_projection_of_its_own_widths() -> None:
    """And what is left is read from a checkpoint, not remembered from before it."""
    loss = bound(KnowledgeProjectionLoss([-1], [1, 2, 3], momentum=0.0))
    assert [tuple(projection.shape) for projection in loss.projections] == [(6, 5), (8, 5), (10, 5)]
    start = {name: value.clone() for name, value in loss.state_dict().items()}
    start["running"], start["left"] = torch.zeros(3), torch.tensor([False, True, False])
    late = replace(Batch(ROWS), progress=1.0)
    loss.running = torch.tensor([2.0, 2.0, 1.0])
    loss(OURS, THEIRS, late)
    assert loss.remaining == ((3, 3),)
    loss.load_state_dict(start)
    loss(OURS, THEIRS, late)
    assert loss.remaining == ((3, 2),)
    assert (loss.running > 0).tolist() == [False, True, False]  # the one that was left is the one that was looked at


def test_text_and_images_have_no_tokens_in_common() -> None:
    """Neither of the two alignments may be taken for it."""
    loss = bound(HiddenStateLoss([(1, 1)]), Anatomy.of(toy_bert()), Anatomy.of(toy_resnet()))
    text = Representations(hidden_states={1: torch.randn(2, 9, 16)})
    image = Representations(hidden_states={1: torch.randn(2, 4, 12)})
    with pytest.raises(ValueError, match=r"got 9 tokens \(student\) and 4 \(teacher\)"):
        loss(text, image, Batch(2))
