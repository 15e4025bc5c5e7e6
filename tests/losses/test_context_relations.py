"""Contextual relations as losses: between the tokens of a layer, and between the layers of a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from torch import Tensor
from toy_representations import LENGTHS, STUDENT, TEACHER, Scene, toy_anatomy, toy_scene

from hfdistill.functional.context import cosine_row_kl, relation_angle, relative_distance_mse
from hfdistill.losses.relation.context import LayerRelationLoss, TokenRelationLoss
from hfdistill.representations import Batch, Representations

FORMULAS = {"distance": relative_distance_mse, "cosine": cosine_row_kl, "angle": relation_angle}


def bound(loss: Any) -> Any:
    """The loss, bound to the toy models."""
    loss.bind(STUDENT, TEACHER)
    return loss


def mask_of(scene: Scene) -> Tensor:
    """The batch's mask."""
    assert scene.batch.mask is not None
    return scene.batch.mask.bool()


@pytest.mark.data
@pytest.mark.parametrize(("name", "relation"), [("ckd/wr_pair", "distance"), ("ckd/wr_angle", "angle")])
def test_both_classes_give_the_golden_value(name: str, relation: str, shared: Path) -> None:
    """The case's items as the tokens of a sentence, and as the layers of a token of which some sentences have none."""
    case = next(case for case in golden.read_cases(shared / "methods" / "golden.json") if case["id"] == name)
    student, teacher, mask = (torch.tensor(case["inputs"][key], dtype=torch.float64) for key in ("s", "t", "mask"))
    loss = TokenRelationLoss([(1, 1)], relation)
    loss.bind(toy_anatomy(6, 1), toy_anatomy(9, 1))
    shown = [Representations(hidden_states={1: side}) for side in (student, teacher)]
    assert loss(*shown, Batch(4, mask=mask)).item() == pytest.approx(case["expected"], rel=1e-9)
    full = mask.bool().all(1)  # sentences that use all five items
    layers = LayerRelationLoss("uniform", relation)
    layers.bind(toy_anatomy(6, 4), toy_anatomy(9, 4))
    states = [{layer: side[:, layer, None] for layer in range(5)} for side in (student, teacher)]
    shown = [Representations(hidden_states=side) for side in states]
    expected = FORMULAS[relation](student[full], teacher[full])
    torch.testing.assert_close(layers(*shown, Batch(4, mask=full[:, None].long())), expected)


@pytest.mark.parametrize("relation", FORMULAS)
def test_word_relations_are_averaged_over_layers(relation: str) -> None:
    """The authors' weights of up to 1000 are for a mean; a sum would make them grow with the number of layers."""
    loss = bound(TokenRelationLoss("uniform", relation))
    assert loss.pairs == ((0, 0), (1, 2), (2, 4))
    scene = toy_scene()
    mask = mask_of(scene)
    expected = [
        FORMULAS[relation](scene.student.hidden_states[ours], scene.teacher.hidden_states[theirs], mask)
        for ours, theirs in loss.pairs
    ]
    torch.testing.assert_close(loss(*scene.parts()), torch.stack(expected).mean())


@pytest.mark.parametrize("relation", FORMULAS)
def test_layer_relations_are_those_of_each_real_token(relation: str) -> None:
    """Over the layer axis, token by token; tokens count alike, however long their sentence."""
    scene = toy_scene()
    states = []
    for side, layers in ((scene.student, (0, 1, 2)), (scene.teacher, (0, 2, 4))):
        states.append(torch.stack([side.hidden_states[layer][mask_of(scene)] for layer in layers], dim=1))
    loss = bound(LayerRelationLoss(relation=relation))
    torch.testing.assert_close(loss(*scene.parts()), FORMULAS[relation](*states))
    assert loss.count(scene.batch) == sum(LENGTHS)
    scene.batch.mask = None
    assert loss(*scene.parts()).isfinite()


@pytest.mark.parametrize("relation", FORMULAS)
def test_layer_relations_teach_nothing_to_the_teacher_itself(relation: str) -> None:
    """The common contract pairs two layers, of which there is no relation to compare; here are three."""
    scene = toy_scene(teacher=toy_anatomy(depth=4))
    same = {theirs: scene.student.hidden_states[ours].double() for ours, theirs in ((0, 0), (1, 2), (2, 4))}
    student = {ours: same[theirs].clone().requires_grad_() for ours, theirs in ((0, 0), (1, 2), (2, 4))}
    loss = bound(LayerRelationLoss(relation=relation))
    value = loss(Representations(hidden_states=student), Representations(hidden_states=same), scene.batch)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    for state in student.values():
        assert state.grad is not None
        assert state.grad.abs().max() < 1e-12


def test_what_is_counted_is_what_is_averaged() -> None:
    """Micro-batches are weighed by it: pairs, triples, and with a window only those within it."""
    batch = toy_scene().batch
    assert bound(TokenRelationLoss()).count(batch) == sum(n**2 for n in LENGTHS)
    assert bound(TokenRelationLoss(relation="angle")).count(batch) == sum(n**3 for n in LENGTHS)
    # with 3 tokens to look at, two at the ends of a sentence: 2 * 4 + 9 (n - 2) triples
    narrow = bound(TokenRelationLoss(relation="angle", window=3))
    assert narrow.count(batch) == sum(8 + 9 * (n - 2) for n in LENGTHS)
    assert narrow.count(Batch(3)) == 3


def test_the_window_reaches_the_formula() -> None:
    """A far token changes the angles at all others, and with a window only those near it."""
    scene = toy_scene()
    states, mask = (scene.student.hidden_states[2], scene.teacher.hidden_states[4]), mask_of(scene)
    for window in (3, None):
        loss = TokenRelationLoss([(-1, -1)], "angle", window)
        torch.testing.assert_close(bound(loss)(*scene.parts()), relation_angle(*states, mask, window))


@pytest.mark.parametrize("window", [1, 2, 20])
def test_a_window_without_a_middle_is_refused(window: int) -> None:
    """An even one reaches further to one side."""
    with pytest.raises(ValueError, match=rf"window must be odd and at least 3, got {window}"):
        TokenRelationLoss(relation="angle", window=window)


def test_two_layers_are_too_few_to_relate() -> None:
    """Their distance, in units of its mean, is 1 on both sides: a loss that is 0 for every student."""
    with pytest.raises(ValueError, match=r"needs at least 3 pairs of layers, got \(\(1, 2\), \(2, 4\)\).*'uniform'"):
        LayerRelationLoss("uniform(embeddings=False)").bind(STUDENT, TEACHER)


@pytest.mark.parametrize("loss", [TokenRelationLoss, LayerRelationLoss])
def test_unknown_relations_list_the_accepted_ones(loss: Any) -> None:
    """A misspelt word must not fall back on a default."""
    with pytest.raises(ValueError, match=r"relation must be one of 'distance', 'cosine', 'angle', got 'angles'"):
        loss(relation="angles")
