"""Patience: one direction per row and intermediate layer, in both reductions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from toy_representations import toy_anatomy, toy_scene

from hfdistill.layer_map import LayerMap
from hfdistill.losses import PatienceLoss

STUDENT, TEACHER = toy_anatomy(depth=3), toy_anatomy(depth=6)
SCENE = toy_scene(STUDENT, TEACHER)


def patience(**keywords: object) -> torch.Tensor:
    """The value on the scene."""
    loss = PatienceLoss(**keywords)  # type: ignore[arg-type]
    loss.bind(STUDENT, TEACHER)
    value: torch.Tensor = loss(*SCENE.parts())
    return value


def test_the_value_is_the_mean_over_rows_layers_and_width() -> None:
    """The authors' weights of 10 to 1000 are meant for this mean; PKD-Skip maps 1, 2 to 2, 4."""
    gaps = [
        F.normalize(SCENE.student.hidden_states[ours][:, 0], dim=-1)
        - F.normalize(SCENE.teacher.hidden_states[theirs][:, 0], dim=-1)
        for ours, theirs in ((1, 2), (2, 4))
    ]
    torch.testing.assert_close(patience(), torch.stack(gaps).square().mean())


def test_the_papers_reduction_sums_layers_and_width() -> None:
    """Equation 7 as written: M D times the mean."""
    torch.testing.assert_close(patience(reduction="paper"), patience() * 2 * 8)


def test_vectors_themselves_can_be_compared() -> None:
    """The authors' code has normalisation as an option."""
    gap = SCENE.student.hidden_states[3][:, 0] - SCENE.teacher.hidden_states[6][:, 0]
    torch.testing.assert_close(patience(layers=[(3, 6)], normalize=False), gap.square().mean())


def test_the_last_layer_is_left_to_the_logits() -> None:
    """Both maps of the paper end before the student's last layer."""
    for layers, pairs in (("skip", ((1, 2), (2, 4))), (LayerMap.last(final=False), ((1, 4), (2, 5)))):
        loss = PatienceLoss(layers)  # type: ignore[arg-type]
        loss.bind(STUDENT, TEACHER)
        assert loss.pairs == pairs


def test_pooling_chooses_the_vector() -> None:
    """A causal model has no [CLS]: what its last real token says is its summary."""
    loss = PatienceLoss([(3, 6)], normalize=False, pooling="last")
    loss.bind(STUDENT, TEACHER)
    rows = torch.arange(3)
    last = torch.tensor([4, 1, 3])
    gap = SCENE.student.hidden_states[3][rows, last] - SCENE.teacher.hidden_states[6][rows, last]
    torch.testing.assert_close(loss(*SCENE.parts()), gap.square().mean())
    assert loss.count(SCENE.batch) == 3


def test_one_pair_of_layers_alone() -> None:
    """`compare` is part of the class's contract, and must be the same formula."""
    vectors = SCENE.student.hidden_states[1][:, 0], SCENE.teacher.hidden_states[2][:, 0]
    torch.testing.assert_close(PatienceLoss().compare(*vectors, None), patience(layers=[(1, 2)]))


def test_rows_of_padding_alone_are_left_out() -> None:
    """Some collators fill up a batch with empty rows, whose first token is padding."""
    loss = PatienceLoss()
    loss.bind(STUDENT, TEACHER)
    scene = toy_scene(STUDENT, TEACHER, lengths=(5, 0, 4))
    expected = torch.stack([loss(*scene.rows(slice(row, row + 1)).parts()) for row in (0, 2)]).mean()
    torch.testing.assert_close(loss(*scene.parts()), expected)
    assert loss.count(scene.batch) == 2


@pytest.mark.parametrize("keyword", ["pooling", "reduction"])
def test_unknown_words_list_the_accepted_ones(keyword: str) -> None:
    """A misspelt word must not fall back on a default."""
    with pytest.raises(ValueError, match=rf"{keyword} must be one of .*'mean'.*, got 'first'"):
        PatienceLoss(**{keyword: "first"})  # type: ignore[arg-type]


def test_a_student_of_one_layer_has_no_intermediate_one() -> None:
    """An empty map would be a loss that is always 0."""
    with pytest.raises(ValueError, match=r"no pair remains.*deeper student"):
        PatienceLoss().bind(toy_anatomy(depth=1), TEACHER)
