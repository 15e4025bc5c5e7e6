"""Self-attention relations: the formula, relation heads, and what the two versions of MiniLM take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy_models import toy_resnet
from toy_representations import LENGTHS, STUDENT, TEACHER, toy_anatomy, toy_scene

from hfdistill.anatomy import Anatomy
from hfdistill.losses import AttentionRelationLoss
from hfdistill.losses.relation.attention_relation import MINILM, MINILM_V2
from hfdistill.representations import Attention


def relation(attention: Attention, name: str, row: int, heads: int) -> Tensor:
    """R(X, Y) of one row's real tokens, (heads, n, n), written out."""
    count = LENGTHS[row]
    left, right = (
        attention.merged(vector)[row, :count].view(count, heads, -1).transpose(0, 1) for vector in name.split("-")
    )
    scores: Tensor = left @ right.transpose(1, 2) / left.shape[-1] ** 0.5
    return scores.softmax(-1)


def expected(names: tuple[str, ...], heads: int) -> list[Tensor]:
    """Per relation the mean over rows of the mean over heads and queries of the KL, at the last layers."""
    scene = toy_scene()
    student, teacher = scene.student.attentions[2], scene.teacher.attentions[4]
    values = []
    for name in names:
        rows = []
        for row in range(len(LENGTHS)):
            ours, theirs = relation(student, name, row, heads), relation(teacher, name, row, heads)
            rows.append((theirs * (theirs.log() - ours.log())).sum(-1).mean())
        values.append(torch.stack(rows).mean())
    return values


@pytest.mark.parametrize("heads", [None, 1, 4])
def test_version_2_is_the_mean_of_three_relations(heads: int | None) -> None:
    """Queries, keys and values, at the last layers, in as many relation heads as one likes."""
    loss = AttentionRelationLoss(relation_heads=heads)
    loss.bind(STUDENT, TEACHER)
    assert loss.pairs == ((2, 4),)
    torch.testing.assert_close(loss(*toy_scene().parts()), torch.stack(expected(MINILM_V2, heads or 2)).mean())


def test_version_1_adds_its_two_terms() -> None:
    """Attention distributions and value relations with weight 1 each, as the 2020 paper has it."""
    loss = AttentionRelationLoss(relations=list(MINILM))
    loss.bind(STUDENT, TEACHER)
    torch.testing.assert_close(loss(*toy_scene().parts()), torch.stack(expected(MINILM, 2)).sum())


def test_weights_are_those_given() -> None:
    """One may care for values more than for keys."""
    loss = AttentionRelationLoss(relations=("key-key", "query-value"), weights=(0.0, 3.0))
    loss.bind(STUDENT, TEACHER)
    torch.testing.assert_close(loss(*toy_scene().parts()), 3 * expected(("query-value",), 2)[0])


def test_every_row_weighs_the_same() -> None:
    """A row is averaged over its own tokens first, so batches weigh by rows."""
    loss = AttentionRelationLoss()
    loss.bind(STUDENT, TEACHER)
    assert loss.count(toy_scene().batch) == 3


def test_relation_heads_must_divide_both_widths() -> None:
    """The message lists the numbers that do."""
    with pytest.raises(
        ValueError, match=r"relation_heads=8 does not divide the teacher's width 12.*divide both widths: \[1, 2, 4\]"
    ):
        AttentionRelationLoss(relation_heads=8).bind(STUDENT, TEACHER)
    with pytest.raises(ValueError, match=r"relation_heads=3 does not divide the student's width 8"):
        AttentionRelationLoss(relation_heads=3).bind(STUDENT, TEACHER)
    with pytest.raises(ValueError, match=r"relation_heads=0 does not divide the student's width 8"):
        AttentionRelationLoss(relation_heads=0).bind(STUDENT, TEACHER)


def test_the_models_own_heads_must_agree() -> None:
    """Head 3 of 4 corresponds to no head of 2; free relation heads are the way out."""
    with pytest.raises(ValueError, match=r"own heads, got 2 \(student\) and 4 \(teacher\).*relation_heads.*8 and 12"):
        AttentionRelationLoss().bind(STUDENT, replace(TEACHER, heads=4))


def test_a_family_without_attention_is_told_so() -> None:
    """Advice about dividing widths would lead into the next error."""
    resnet = Anatomy.of(toy_resnet())
    with pytest.raises(ValueError, match=r"resnet has no attention that could be compared"):
        AttentionRelationLoss().bind(resnet, resnet)


@pytest.mark.parametrize("name", ["queries-keys", "query", "", "query-key-value"])
def test_unknown_relations_are_refused(name: str) -> None:
    """With how relations are written, and those of the papers."""
    with pytest.raises(ValueError, match=rf"two of query, key, value joined by '-', got '{name}'.*MiniLMv2"):
        AttentionRelationLoss(relations=(name,))


def test_relations_and_weights_must_correspond() -> None:
    """No relation at all would be a loss that is always 0."""
    with pytest.raises(ValueError, match=r"one weight per relation.*got 3 relations and 2 weights"):
        AttentionRelationLoss(weights=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"at least one relation, got 0 relations"):
        AttentionRelationLoss(relations=())


def test_equal_relations_of_unequal_models() -> None:
    """No projection is needed: a wider teacher with the same relations has nothing to teach."""
    student, teacher = toy_anatomy(width=8), toy_anatomy(width=16, depth=2)
    scene = toy_scene(student, teacher)
    for layer, ours in scene.student.attentions.items():
        theirs = scene.teacher.attentions[layer]
        for name in ("query", "key", "value"):
            # repeated entries double each product, and the root of twice the width takes sqrt(2) of it away
            setattr(theirs, name, vars(ours)[name].repeat(1, 1, 1, 2) / 2**0.25)
    loss = AttentionRelationLoss("uniform")
    loss.bind(student, teacher)
    assert loss(*scene.parts()).item() == pytest.approx(0.0, abs=1e-6)
