"""Hidden states: both metrics over real tokens, with and without the embedding output."""

from __future__ import annotations

import pytest
import torch
from toy_representations import LENGTHS, STUDENT, TEACHER, toy_anatomy, toy_scene

from hfdistill.losses import HiddenStateLoss


def test_mse_is_the_mean_over_tokens_and_width_summed_over_layers() -> None:
    """A mean over layers instead would make the weight depend on the student's depth."""
    loss = HiddenStateLoss("uniform")
    loss.bind(STUDENT, TEACHER)
    assert loss.pairs == ((0, 0), (1, 2), (2, 4))
    scene = toy_scene()
    expected = torch.zeros(())
    for position, (ours, theirs) in enumerate(loss.pairs):
        gap = loss.project(position, scene.student.hidden_states[ours]) - scene.teacher.hidden_states[theirs]
        real = torch.cat([row[:length] for row, length in zip(gap, LENGTHS, strict=True)])  # (tokens, D)
        expected = expected + real.square().mean()
    torch.testing.assert_close(loss(*scene.parts()), expected)


def test_cosine_looks_at_directions_only() -> None:
    """DistilBERT's loss does not see lengths: a student three times as long has nothing to learn."""
    loss = HiddenStateLoss([(-1, -1)], metric="cosine")
    loss.bind(STUDENT, toy_anatomy())
    scene = toy_scene(teacher=toy_anatomy())
    student = scene.student.hidden_states[2]
    mask = scene.batch.mask
    torch.testing.assert_close(loss.compare(3 * student, student, mask), torch.zeros(()), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(loss.compare(-student, student, mask), torch.tensor(2.0))
    cosines = torch.nn.functional.cosine_similarity(student, scene.teacher.hidden_states[2], dim=-1)
    assert mask is not None
    torch.testing.assert_close(loss(*scene.parts()), 1 - cosines[mask.bool()].mean())


def test_without_a_mask_every_token_counts() -> None:
    """Images have no padding; batches then weigh by their rows."""
    loss = HiddenStateLoss([(1, 1)])
    loss.bind(STUDENT, toy_anatomy())
    scene = toy_scene(teacher=toy_anatomy())
    scene.batch.mask = None
    expected = (scene.student.hidden_states[1] - scene.teacher.hidden_states[1]).square().mean()
    torch.testing.assert_close(loss(*scene.parts()), expected)
    assert loss.count(scene.batch) == 3


def test_the_embedding_output_can_be_left_out() -> None:
    """A student with a vocabulary or positions of its own may differ there for good reasons."""
    loss = HiddenStateLoss("uniform", embeddings=False)
    loss.bind(STUDENT, TEACHER)
    assert loss.pairs == ((1, 2), (2, 4))
    assert len(loss.projectors) == 2


def test_an_unknown_metric_lists_the_accepted_ones() -> None:
    """A misspelt metric must not fall back on a default."""
    with pytest.raises(ValueError, match=r"metric must be one of 'mse', 'cosine', got 'cos'"):
        HiddenStateLoss(metric="cos")


def test_a_layer_the_student_does_not_have_is_refused() -> None:
    """With the pair, the depth and what may be written instead."""
    with pytest.raises(
        ValueError, match=r"names teacher layer 5, but the teacher has layers 0 \(embeddings\) to 4.*from 0 to 4"
    ):
        HiddenStateLoss([(1, 5)]).bind(STUDENT, TEACHER)
