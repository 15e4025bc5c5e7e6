"""Category structure: golden values through the class, its terms, its labels, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from toy_representations import STUDENT, TEACHER, TOKENS, toy_anatomy, toy_scene

from hfdistill.functional.categories import category_compactness, category_inter, category_intra
from hfdistill.losses.relation.category_structure import CategoryStructureLoss
from hfdistill.representations import Batch, Representations


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "options"),
    [("cskd/inter", {"intra": 0.0, "reduction": "paper"}), ("cskd/intra", {"inter": 0.0})],
)
@pytest.mark.parametrize("target", ["features", "logits"])
def test_golden_values(shared: Path, name: str, options: dict[str, Any], target: str) -> None:
    """Of the last layer and of the logits: the same formulas, as in the authors' code."""
    (case,) = (case for case in golden.read_cases(shared / "methods" / "golden.json") if case["id"] == name)
    sides = {side: torch.tensor(case["inputs"][side], dtype=torch.float64) for side in "st"}
    loss = CategoryStructureLoss(target=target, **options)
    loss.bind(toy_anatomy(depth=1, width=5, classes=5), toy_anatomy(depth=1, width=5, classes=5))
    student, teacher = (
        Representations(logits=side) if target == "logits" else Representations(hidden_states={1: side[:, None]})
        for side in sides.values()
    )
    value = loss(student, teacher, Batch(4, labels=torch.tensor(case["inputs"]["y"])))
    assert value.item() == pytest.approx(case["expected"], rel=1e-9)


def test_it_is_the_weighted_sum_of_its_terms() -> None:
    """Each weight reaches its own term, and rows without a label none of them."""
    loss = CategoryStructureLoss(target="logits", inter=2.0, intra=3.0, compactness=4.0)
    loss.bind(STUDENT, TEACHER)
    scene = toy_scene(lengths=(5, 2, 4, 3, 1))
    scene.batch.labels = torch.tensor([0, 1, 1, 0, -100])
    ours, theirs, labels = scene.student.logits[:4], scene.teacher.logits[:4], scene.batch.labels[:4]
    expected = 2 * category_inter(ours, theirs, labels) + 3 * category_intra(ours, theirs, labels)
    torch.testing.assert_close(loss(*scene.parts()), expected + 4 * category_compactness(ours, labels))
    assert loss.count(scene.batch) == 4


def test_centres_of_correct_rows_ask_both_heads() -> None:
    """A row that the teacher gets wrong stays in the student's centre, and the other way round."""
    loss = CategoryStructureLoss(inter=0.0, correct_only=True)
    same = toy_anatomy()
    loss.bind(same, same)
    scene = toy_scene(same, same, lengths=(5, 2, 4))
    scene.batch.labels = torch.tensor([1, 1, 1])
    scene.student.logits, scene.teacher.logits = torch.eye(3)[[1, 1, 0]], torch.eye(3)[[0, 1, 1]]
    ours, theirs = (
        (side.hidden_states[2] * scene.batch.mask[..., None]).sum(1) / scene.batch.mask.sum(1, keepdim=True)
        for side in (scene.student, scene.teacher)
    )
    gaps = (ours - ours[:2].mean(0)) - (theirs - theirs[1:].mean(0))
    torch.testing.assert_close(loss(*scene.parts()), gaps.square().mean())
    assert loss.needs()[0].logits
    assert not CategoryStructureLoss().needs()[0].logits
    correct = torch.tensor([True, True, False])
    expected = category_intra(ours, theirs, scene.batch.labels, None, correct, correct.flip(0))
    torch.testing.assert_close(loss(*scene.parts()), expected)


def test_logits_are_never_projected() -> None:
    """Their entries are classes, which no matrix may mix; and a projector that is not used would not be trained."""
    loss = CategoryStructureLoss(target="logits")
    loss.bind(STUDENT, TEACHER)
    assert not list(loss.parameters())


@pytest.mark.parametrize("labels", [None, torch.tensor([0.5, 1.0, 2.0]), torch.zeros(3, 5, dtype=torch.long)])
def test_labels_of_another_kind_are_refused(labels: torch.Tensor | None) -> None:
    """Without classes of rows there are no categories; the message names a loss that needs none."""
    loss = CategoryStructureLoss()
    loss.bind(STUDENT, TEACHER)
    scene = toy_scene()
    scene.batch.labels = labels
    with pytest.raises(ValueError, match=r"one class label per row.*SimilarityPreservingLoss"):
        loss(*scene.parts())


def test_heads_that_cannot_be_compared_are_refused() -> None:
    """When the models are known, not after the first batch."""
    with pytest.raises(ValueError, match="a single output"):
        CategoryStructureLoss().bind(replace(STUDENT, classes=1), replace(TEACHER, classes=1))
    with pytest.raises(ValueError, match=r"3 classes \(student\) and 2 \(teacher\).*target='features'"):
        CategoryStructureLoss(target="logits").bind(STUDENT, replace(TEACHER, classes=2))
    CategoryStructureLoss().bind(STUDENT, replace(TEACHER, classes=2))
    with pytest.raises(ValueError, match="target must be one of 'features', 'logits', got 'both'"):
        CategoryStructureLoss(target="both")
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'paper', got 'sum'"):
        CategoryStructureLoss(reduction="sum")
    loss = CategoryStructureLoss(target="logits")
    loss.bind(STUDENT, TEACHER)
    scene = toy_scene(*(replace(side, head=TOKENS) for side in (STUDENT, TEACHER)))
    scene.batch.labels = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"one vector of logits per row, got \(3, 5, 3\)"):
        loss(*scene.parts())
