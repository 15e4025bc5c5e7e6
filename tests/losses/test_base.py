"""What losses inherit: the layer map, projection, masking, summing, and pooling to one vector per row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy_representations import STUDENT, TEACHER, toy_anatomy, toy_scene

from hfdistill.layer_map import LayerMap
from hfdistill.losses.base import DistillationLoss, choose
from hfdistill.losses.layerwise import AttentionLoss, LayerwiseLoss, layer_sets, parse_layers
from hfdistill.losses.pooling import pooled_vector
from hfdistill.representations import Attention, Batch, Needs, Representations
from hfdistill.schedules import Constant, Linear

HIDDEN = torch.arange(24.0).view(2, 4, 3)
LEFT_AND_RIGHT = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])


class GapLoss(LayerwiseLoss):
    """The least that a loss on layers must write."""

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """Mean gap over the real tokens."""
        assert mask is not None
        gap = (student - teacher.detach()).abs().mean(-1)
        return gap[mask.bool()].mean()


class LogitGapLoss(DistillationLoss):
    """The least that any loss must write."""

    def needs(self) -> tuple[Needs, Needs]:
        """Logits."""
        return Needs(logits=True), Needs(logits=True)

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Mean gap."""
        assert student.logits is not None
        assert teacher.logits is not None
        return (student.logits - teacher.logits).abs().mean()


class AttentionSumLoss(AttentionLoss):
    """The least that a loss on attention must write."""

    def needs_of(self, layers: frozenset[int]) -> Needs:
        """Probabilities."""
        return Needs(attention_probabilities=layers)

    def compare(self, student: Attention, teacher: Attention, mask: Tensor | None) -> Tensor:
        """Something of both sides."""
        return student.probabilities.max() - teacher.probabilities.max()


def test_a_loss_on_layers_is_one_method() -> None:
    """The promise to authors of new losses: mapping, projection, masking and the sum come with the base class."""
    loss = GapLoss([(1, 3), (2, 4)])
    loss.bind(STUDENT, TEACHER)
    scene = toy_scene()
    expected = torch.zeros(())
    for position, (ours, theirs) in enumerate([(1, 3), (2, 4)]):
        projected = loss.projectors[position](scene.student.hidden_states[ours])
        expected = expected + loss.compare(projected, scene.teacher.hidden_states[theirs], scene.batch.mask)
    torch.testing.assert_close(loss(*scene.parts()), expected)
    assert loss.count(scene.batch) == 5 + 2 + 4


def test_any_other_loss_is_two_methods() -> None:
    """It binds to any pair of models and counts rows, without writing either."""
    loss = LogitGapLoss(weight=0.5)
    loss.bind(STUDENT, TEACHER)
    scene = toy_scene()
    assert loss(*scene.parts()) > 0
    assert loss.count(scene.batch) == 3
    assert loss.weight == Constant(0.5)
    assert loss.weight(1.0) == 0.5


def test_a_weight_may_follow_the_training() -> None:
    """A schedule is taken as it is; what is neither number nor schedule is refused where it is written."""
    assert LogitGapLoss(Linear(1.0, 0.0)).weight(0.25) == 0.75
    with pytest.raises(TypeError, match=r"a number as value, got 'high' \(str\).*Linear"):
        LogitGapLoss("high")  # type: ignore[arg-type]


def test_attention_losses_leave_the_embeddings_out() -> None:
    """Layer 0 has no attention; "uniform" must mean the same to a user whichever knowledge he transfers."""
    loss = AttentionSumLoss("uniform")
    loss.bind(STUDENT, TEACHER)
    assert loss.pairs == ((1, 2), (2, 4))
    assert loss.needs() == (
        Needs(attention_probabilities=frozenset({1, 2})),
        Needs(attention_probabilities=frozenset({2, 4})),
    )
    scene = toy_scene()
    expected = sum(
        scene.student.attentions[ours].probabilities.max() - scene.teacher.attentions[theirs].probabilities.max()
        for ours, theirs in loss.pairs
    )
    torch.testing.assert_close(loss(*scene.parts()), expected)


def test_one_projector_per_pair_or_one_for_all() -> None:
    """TinyBERT shares one over all layers; other papers do not, and the two are different models."""
    scene = toy_scene()
    shared, own = GapLoss("uniform", shared_projector=True), GapLoss("uniform")
    for loss, wanted in ((shared, 1), (own, 3)):
        loss.bind(STUDENT, TEACHER)
        assert len(loss.projectors) == wanted
        assert sum(parameter.numel() for parameter in loss.parameters()) == wanted * (8 * 12 + 12)
    hidden = scene.student.hidden_states[0]
    assert torch.equal(shared.project(0, hidden), shared.project(2, hidden))
    assert not torch.equal(own.project(0, hidden), own.project(2, hidden))


def test_equal_widths_are_not_projected() -> None:
    """A random map between equal widths would hide from the student what it should learn."""
    loss = GapLoss("uniform")
    loss.bind(STUDENT, toy_anatomy(depth=4))
    hidden = toy_scene().student.hidden_states[1]
    assert loss.project(1, hidden) is hidden
    assert not loss.state_dict()


def test_a_map_beyond_the_layers_is_refused_when_bound() -> None:
    """At construction the depths are not known; at the first batch it would be too late."""
    loss = GapLoss([(3, 4)])
    with pytest.raises(
        ValueError,
        match=r"\(3, 4\) names student layer 3, but the student has layers 0 \(embeddings\) to 2.*What to",
    ):
        loss.bind(STUDENT, TEACHER)
    with pytest.raises(ValueError, match=r"depth 4 with a teacher of depth 2.*student and teacher are not swapped"):
        GapLoss("uniform").bind(TEACHER, STUDENT)


@pytest.mark.parametrize("layers", ["last", LayerMap.last(), [(1, 3), (2, 4)], ((1, 3), (2, 4))])
def test_layers_are_written_in_several_ways(layers: object) -> None:
    """A name, a LayerMap or pairs: a YAML file knows only lists, Python knows all three."""
    assert parse_layers(layers).resolve(2, 4) == ((1, 3), (2, 4))  # type: ignore[arg-type]


def test_layer_sets_are_those_of_each_side() -> None:
    """A layer that stands in several pairs is captured once."""
    assert layer_sets([(0, 1), (2, 1), (2, 3)]) == ({0, 2}, {1, 3})


def test_an_unknown_choice_lists_the_accepted_ones() -> None:
    """A misspelt word must not fall back on a default."""
    assert choose("metric", "mse", ("mse", "cosine")) == "mse"
    with pytest.raises(ValueError, match=r"metric must be one of 'mse', 'cosine', got 'mae'"):
        choose("metric", "mae", ("mse", "cosine"))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("cls", [HIDDEN[0, 0], HIDDEN[1, 0]]),
        ("last", [HIDDEN[0, 3], HIDDEN[1, 2]]),
        ("mean", [HIDDEN[0, 2:].mean(0), HIDDEN[1, :3].mean(0)]),
    ],
)
def test_pooling_with_padding_on_either_side(pooling: str, expected: list[Tensor]) -> None:
    """Causal models are padded on the left: the last real token is not the one before the padding."""
    torch.testing.assert_close(pooled_vector(HIDDEN, LEFT_AND_RIGHT, pooling), torch.stack(expected))


def test_pooling_without_a_mask_takes_every_token() -> None:
    """Images have no padding and no mask."""
    assert torch.equal(pooled_vector(HIDDEN, None, "cls"), HIDDEN[:, 0])
    assert torch.equal(pooled_vector(HIDDEN, None, "last"), HIDDEN[:, -1])
    torch.testing.assert_close(pooled_vector(HIDDEN, None, "mean"), HIDDEN.mean(1))


def test_mean_pooling_of_padding_alone_is_zero() -> None:
    """0 / 0 would reach the whole batch."""
    assert not pooled_vector(HIDDEN, torch.zeros(2, 4), "mean").any()
