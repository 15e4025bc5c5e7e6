"""The memory of training rows: what a bank takes up, and whom rows are contrasted with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy_representations import DATA_LABELS

from hfdistill.losses.memory import Candidates, MemoryBank
from hfdistill.representations import IGNORE_INDEX

ROWS = len(DATA_LABELS)


def test_a_row_seen_twice_is_remembered_once() -> None:
    """Samplers fill the last batch with rows seen before; on a GPU the one of two writes that stays is left to chance.

    The last that holds a token decides, whatever the order of writes.
    """
    bank = MemoryBank(4, 2, normalized=True)
    before = bank.student.clone()
    seen = torch.nn.functional.normalize(torch.randn(4, 2), dim=1)
    bank.update(torch.tensor([2, 0, 2, 2]), seen, seen, torch.tensor([True, True, True, False]), momentum=0.0)
    torch.testing.assert_close(bank.student, torch.stack([seen[1], before[1], seen[2], before[3]]))
    assert torch.equal(bank.student[2], bank.teacher[2])


def test_negatives_are_of_other_classes() -> None:
    """One's own class among the negatives pushes a class apart; every row of the others must be in reach."""
    candidates = Candidates(ROWS, DATA_LABELS)
    index = torch.tensor([1, 5, 9, 15])
    drawn = candidates.drawn(index.repeat(100), 6, "exact").view(100, 4, 7)
    assert (drawn[..., 0] == index).all()
    for position, row in enumerate(index):
        others = (DATA_LABELS[row] != DATA_LABELS).nonzero().flatten()
        assert drawn[:, position, 1:].unique().equal(others)


@pytest.mark.parametrize("labels", [None, torch.zeros(ROWS, dtype=torch.long), torch.full((ROWS,), IGNORE_INDEX)])
def test_without_classes_all_other_rows_are_negatives(labels: Tensor | None) -> None:
    """No labels, one class, or rows whose label is ignored: then a row is told from every other one."""
    candidates = Candidates(ROWS, labels)
    drawn = candidates.drawn(torch.tensor([3]).repeat(100), 15, "exact")
    assert drawn[:, 1:].unique().tolist() == [row for row in range(ROWS) if row != 3]


def test_draws_are_uniform() -> None:
    """The loss takes 1 / rows for the probability of a negative; 16,000 draws of 12 rows stray by 3 % at most."""
    candidates = Candidates(ROWS, torch.arange(ROWS) // 4)
    drawn = candidates.drawn(torch.full((4000,), 6), 4, "exact")[:, 1:]
    counts = torch.bincount(drawn.flatten(), minlength=ROWS)
    assert counts[4:8].tolist() == [0, 0, 0, 0]
    assert counts[counts > 0].float().div(16000 / 12).sub(1).abs().max() < 0.1


def test_relaxed_positives_are_any_row_of_the_class() -> None:
    """They teach the class rather than the row; a row without a class has only itself."""
    candidates = Candidates(ROWS, torch.where(torch.arange(ROWS) == 9, IGNORE_INDEX, DATA_LABELS))
    drawn = candidates.drawn(torch.tensor([4, 9]).repeat(100), 2, "relax")[:, 0].view(100, 2)
    assert drawn[:, 0].unique().tolist() == [1, 4, 7, 10, 13]
    assert drawn[:, 1].unique().tolist() == [9]


def test_no_more_negatives_than_other_rows() -> None:
    """The default fits 50,000 rows: in a small set it would draw each row a thousand times."""
    assert Candidates(5, None).drawn(torch.tensor([0, 4]), 16384, "exact").shape == (2, 5)
    assert Candidates(5, None).spread(3, 16384).tolist() == [[5, 0, 1, 2, 3], [6, 0, 1, 2, 3], [7, 0, 1, 2, 3]]
