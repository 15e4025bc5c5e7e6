"""Prime-aware features: a fresh branch, what it learns, its bounds and its schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toy_representations import STUDENT, TEACHER, toy_anatomy, toy_scene

from hfdistill.losses.feature.adaptive import PrimeAwareLoss, VarianceBranch
from hfdistill.losses.pooling import pooled_vector
from hfdistill.representations import Batch, Representations
from hfdistill.schedules import Piecewise


class Fixed(nn.Module):
    """A branch that predicts what it is told to."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value
        self.read: list[Tensor] = []

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        self.read.append(hidden)
        return self.value


@pytest.mark.data
def test_the_golden_value_through_the_class(shared: Path) -> None:
    """The branch reads the student's vector, and its answer weighs that row."""
    (case,) = (case for case in golden.read_cases(shared / "methods/golden.json") if case["id"] == "pad_l2")
    tensors = {key: torch.tensor(value, dtype=torch.float64) for key, value in case["inputs"].items()}
    width = tensors["s"].shape[1]
    loss = PrimeAwareLoss(((1, 1),), pooling="cls").double()
    loss.bind(toy_anatomy(width=width), toy_anatomy(width=width))
    branch = Fixed(tensors["logvar"])
    loss.branches = nn.ModuleList([branch])
    sides = (Representations(hidden_states={1: tensors[side][:, None]}) for side in "st")
    value = loss(*sides, Batch(len(tensors["s"])))
    assert value.item() == pytest.approx(case["expected"], rel=1e-9)
    assert torch.equal(branch.read[0], tensors["s"])


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "tokens"])
@pytest.mark.parametrize("normalization", ["layer", "batch"])
def test_it_begins_as_the_mean_squared_difference(pooling: str, normalization: str) -> None:
    """A fresh branch predicts 0: random variances would weigh the first steps by chance."""
    loss = PrimeAwareLoss(pooling=pooling, normalization=normalization)
    loss.bind(STUDENT, TEACHER)
    scene = toy_scene()
    inputs: list[Any] = [scene.student.hidden_states[2], scene.teacher.hidden_states[4], scene.batch.mask]
    if pooling != "tokens":
        inputs = [*(pooled_vector(side, inputs[2], pooling) for side in inputs[:2]), torch.ones(3)]
    valid = inputs[2].bool()
    expected = (loss.project(0, inputs[0]) - inputs[1])[valid].square().mean()
    torch.testing.assert_close(loss(*scene.parts()), expected / (1 + 1e-6))
    assert loss.count(scene.batch) == valid.sum()


def test_batch_normalization_is_over_the_items_that_count() -> None:
    """That of torch on the real tokens alone; padding would shift what every row is told about itself."""
    branch = VarianceBranch(4, 6, "batch")
    for parameter in branch.parameters():
        nn.init.normal_(parameter)
    hidden, mask = torch.randn(3, 5, 4), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    predicted = branch(hidden.masked_fill(mask[..., None] == 0, torch.nan), mask)
    linear = branch.linear(hidden[mask.bool()])
    expected = F.batch_norm(linear, None, None, branch.spread, branch.shift, training=True)
    torch.testing.assert_close(predicted[mask.bool()], expected)
    everything = F.batch_norm(branch.linear(hidden[0]), None, None, branch.spread, branch.shift, training=True)
    torch.testing.assert_close(branch(hidden[0], None), everything)


@pytest.mark.parametrize("normalization", ["layer", "batch"])
def test_the_branch_learns_which_rows_are_hard(normalization: str) -> None:
    """Rows of a class that cannot be matched must come to count less than the others; that is the method."""
    anatomy = toy_anatomy(width=8, depth=1)
    loss = PrimeAwareLoss(((1, 1),), pooling="cls", normalization=normalization)
    loss.bind(anatomy, anatomy)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    hard = torch.arange(64) % 2 == 1
    for _ in range(150):
        student = torch.randn(64, 1, 8)
        student[:, :, 0] = torch.where(hard, 3.0, -3.0)[:, None]
        teacher = student + torch.randn(64, 1, 8) * torch.where(hard, 3.0, 0.3)[:, None, None]
        sides = (Representations(hidden_states={1: side}) for side in (student, teacher))
        value = loss(*sides, Batch(64))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    variances = loss.branches[0](student[:, 0], None).mean(-1)
    assert variances[hard].mean() > variances[~hard].mean() + 2.0


def test_log_variances_are_clamped() -> None:
    """A branch that runs away would switch a row off, or blow it up 1e6-fold."""
    anatomy = toy_anatomy(width=2, depth=1)
    loss = PrimeAwareLoss(((1, 1),), pooling="cls")
    loss.bind(anatomy, anatomy)
    sides = [Representations(hidden_states={1: torch.full((1, 1, 2), value)}) for value in (0.0, 1.0)]
    for predicted, bound in ((1e3, 8.0), (-1e3, -8.0)):
        loss.branches = nn.ModuleList([Fixed(torch.full((1, 2), predicted))])
        expected = 1 / (1e-6 + torch.tensor(bound).exp()) + bound
        torch.testing.assert_close(loss(*sides, Batch(1)), expected)


def test_variance_may_be_scheduled() -> None:
    """At 0 the branch has no say; a Schedule brings it in when the student is near enough."""
    anatomy = toy_anatomy(width=8, depth=2)
    loss = PrimeAwareLoss(variance=Piecewise({0.0: 0.0, 0.5: 1.0}))
    loss.bind(anatomy, anatomy)
    loss.branches = nn.ModuleList([Fixed(torch.ones(3, 8))])
    scene = toy_scene(anatomy, anatomy)
    before = loss(*scene.parts())
    assert isinstance(before, Tensor)
    scene.batch.progress = 0.5
    torch.testing.assert_close(loss(*scene.parts()), before * (1 + 1e-6) / (1e-6 + torch.e) + 1.0)


def test_unknown_words_list_the_accepted_ones() -> None:
    """A misspelt pooling must not fall back on another."""
    with pytest.raises(ValueError, match="'cls', 'mean', 'last', 'tokens', got 'max'"):
        PrimeAwareLoss(pooling="max")
    with pytest.raises(ValueError, match="'layer', 'batch', got 'group'"):
        PrimeAwareLoss(normalization="group")
