"""Contrastive representations: each row's own teacher vector against those of the other rows of the batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from toy_representations import STUDENT, TEACHER, toy_anatomy, toy_scene

from hfdistill.losses import ContrastiveRepresentationLoss
from hfdistill.losses.pooling import pooled_vector


def test_the_value_is_cos_nce_summed_over_layers() -> None:
    """Equation 3 with the other rows as negatives, written out row by row."""
    loss = ContrastiveRepresentationLoss()
    loss.bind(STUDENT, TEACHER)
    assert loss.pairs == ((1, 2), (2, 4))
    scene = toy_scene()
    expected = torch.zeros(())
    for position, (ours, theirs) in enumerate(loss.pairs):
        vectors = loss.project(position, pooled_vector(scene.student.hidden_states[ours], scene.batch.mask, "mean"))
        targets = pooled_vector(scene.teacher.hidden_states[theirs], scene.batch.mask, "mean")
        distance = 1 - F.cosine_similarity(targets[None], vectors[:, None], dim=-1)  # (student row, teacher row)
        for row in range(3):
            near = distance[row, row]
            far = torch.cat([distance[row, :row], distance[row, row + 1 :]])
            expected = expected + ((2 * 2 - (far - near).sum()) / (2 * 2) + near) / 3
    torch.testing.assert_close(loss(*scene.parts()), expected)


@pytest.mark.parametrize(("student", "expected"), [([[1.0, 0], [-1, 0]], 0.0), ([[-1.0, 0], [1, 0]], 4.0)])
def test_the_best_and_the_worst_value(student: list[list[float]], expected: float) -> None:
    """0 with one's own vector and against the others, 4 the other way round; no weight is needed to bound it."""
    teacher = torch.tensor([[2.0, 0.0], [-3.0, 0.0]])
    value = ContrastiveRepresentationLoss().compare(torch.tensor(student), teacher, None)
    assert value.item() == pytest.approx(expected)


def test_one_row_has_no_negatives() -> None:
    """Then only the distance to one's own vector is left."""
    student, teacher = torch.randn(1, 4), torch.randn(1, 4)
    expected = 1 - F.cosine_similarity(student, teacher).mean()
    torch.testing.assert_close(ContrastiveRepresentationLoss().compare(student, teacher, None), expected)


def test_rows_of_padding_alone_neither_learn_nor_repel() -> None:
    """An empty row has no vector: as a negative it would push every other row from the origin."""
    loss = ContrastiveRepresentationLoss([(-1, -1)])
    loss.bind(STUDENT, TEACHER)
    full, holed = toy_scene(lengths=(5, 2, 4)), toy_scene(lengths=(5, 0, 4))
    without = holed.rows(slice(0, 3, 2))
    torch.testing.assert_close(loss(*holed.parts()), loss(*without.parts()))
    assert loss(*full.parts()) != loss(*holed.parts())
    assert loss.count(holed.batch) == 2


def test_the_embedding_output_can_be_kept() -> None:
    """It is left out by default, as the paper contrasts transformer layers."""
    loss = ContrastiveRepresentationLoss(embeddings=True)
    loss.bind(STUDENT, TEACHER)
    assert loss.pairs == ((0, 0), (1, 2), (2, 4))


def test_an_unknown_pooling_lists_the_accepted_ones() -> None:
    """A misspelt word must not fall back on a default."""
    with pytest.raises(ValueError, match=r"pooling must be one of 'cls', 'mean', 'last', got 'max'"):
        ContrastiveRepresentationLoss(pooling="max")


def test_lengths_of_vectors_do_not_matter() -> None:
    """Only angles are contrasted, so a student of other scale has nothing to learn from it."""
    loss = ContrastiveRepresentationLoss([(1, 1)])
    loss.bind(toy_anatomy(), toy_anatomy())
    scene = toy_scene(toy_anatomy(), toy_anatomy())
    before = loss(*scene.parts())
    scene.student.hidden_states[1].mul_(7.0)
    scene.teacher.hidden_states[1].mul_(0.1)
    torch.testing.assert_close(loss(*scene.parts()), before)
