"""InfoNCE: each row's own teacher vector among those of the batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from toy_representations import STUDENT, TEACHER, toy_anatomy, toy_scene

from hfdistill.losses.embedding import Embedding
from hfdistill.losses.relation.in_batch_contrast import InBatchContrastLoss
from hfdistill.representations import Batch, Representations


def embedding_of(loss: InBatchContrastLoss) -> Embedding:
    """The embedding layers of the only pair."""
    (module,) = (module for module in loss.embeddings if isinstance(module, Embedding))
    return module


@pytest.mark.data
def test_the_golden_value(shared: Path) -> None:
    """The formula is held to it elsewhere; here a temperature that does not arrive, or a swapped side, would show."""
    case = next(case for case in golden.read_cases(shared / "methods" / "golden.json") if case["id"] == "infonce")
    student, teacher = (torch.tensor(case["inputs"][side], dtype=torch.float64) for side in ("s", "t"))
    rows, width = student.shape
    loss = InBatchContrastLoss(case["kwargs"]["T"], dimension=width)
    loss.bind(toy_anatomy(width, 1), toy_anatomy(width, 1))
    with torch.no_grad():
        for layer in (embedding_of(loss).student, embedding_of(loss).teacher):
            layer.weight.copy_(torch.eye(width))
            layer.bias.zero_()
    shown = [Representations(hidden_states={1: side[:, None]}) for side in (student, teacher)]
    assert loss.double()(*shown, Batch(rows)).item() == pytest.approx(case["expected"], rel=1e-9)


def test_rows_of_padding_alone_are_no_negatives() -> None:
    """Their vector is that of nothing: the more of them, the easier the others would be told apart."""
    loss = InBatchContrastLoss()
    loss.bind(STUDENT, TEACHER)
    holed = toy_scene(lengths=(5, 0, 4))
    torch.testing.assert_close(loss(*holed.parts()), loss(*holed.rows(slice(0, 3, 2)).parts()))
    assert loss.count(holed.batch) == 2


def test_embedding_layers_begin_as_pytorchs_do() -> None:
    """The published constants go with this start; one of small weights, as projectors have, would learn later."""
    torch.manual_seed(0)
    loss = InBatchContrastLoss()
    loss.bind(STUDENT, TEACHER)
    module = embedding_of(loss)
    assert module.sizes == (8, 12, 128)
    assert module.student.weight.abs().max().item() == pytest.approx(1 / math.sqrt(8), rel=0.05)


def test_it_can_be_learnt() -> None:
    """Both layers together must bring the loss of distinct rows near 0: each row finds its teacher."""
    loss = InBatchContrastLoss()
    loss.bind(STUDENT, TEACHER)
    optimizer, scene = torch.optim.SGD(loss.parameters(), lr=1.0), toy_scene()
    first = loss(*scene.parts())
    for _ in range(30):
        optimizer.zero_grad()
        loss(*scene.parts()).backward()
        optimizer.step()
    assert loss(*scene.parts()) < 0.01 < first


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"temperature": -1.0}, "temperature must be above 0, got -1.0"),
        ({"dimension": 0}, "dimension must be above 0, got 0"),
        ({"pooling": "max"}, "pooling must be one of 'cls', 'mean', 'last', got 'max'"),
    ],
)
def test_keywords_out_of_range_are_refused(keywords: dict[str, Any], message: str) -> None:
    """At construction, before hours of training."""
    with pytest.raises(ValueError, match=message):
        InBatchContrastLoss(**keywords)
