"""Rows of the training set keep their numbers, through every kind of data set and the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from training_toys import text_rows, trainer_of

from hfdistill import Batch, DistillationLoss, Needs, Objective, Representations, TaskLoss
from hfdistill.representations import SAMPLE_INDEX
from hfdistill.sample_index import class_labels, indexed_rows


class RowNotesLoss(DistillationLoss):
    """Notes which training rows it saw, and the first token of each."""

    indexed: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, float]] = []
        self.data: tuple[int, Tensor | None] = (0, None)

    def bind_data(self, rows: int, labels: Tensor | None) -> None:
        self.data = (rows, labels)

    def needs(self) -> tuple[Needs, Needs]:
        return Needs(logits=True), Needs()

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        assert batch.index is not None
        assert batch.labels is not None
        assert student.logits is not None
        self.seen += list(zip(batch.index.tolist(), batch.labels.tolist(), strict=True))
        return student.logits.square().mean()


def test_numbers_follow_their_rows_through_training(tmp_path: Path) -> None:
    """Shuffled and batched, a row must arrive with its own number, or a memory bank mixes up rows."""
    rows, loss = text_rows(8), RowNotesLoss()
    trainer = trainer_of(tmp_path, Objective(notes=loss, task=TaskLoss()), rows=rows, num_train_epochs=2, max_steps=-1)
    trainer.train()
    assert sorted(number for number, _ in loss.seen) == sorted([*range(8), *range(8)])
    assert [number for number, _ in loss.seen[:8]] != list(range(8)), "the order must be a shuffled one"
    assert all(rows[number]["labels"] == label for number, label in loss.seen)
    assert loss.data[0] == 8
    assert loss.data[1] is not None
    assert loss.data[1].tolist() == rows["labels"][:]


def test_evaluation_needs_no_numbers(tmp_path: Path) -> None:
    """Rows of an evaluation set are in no memory bank."""
    trainer = trainer_of(tmp_path, Objective(notes=RowNotesLoss(), task=TaskLoss()))
    assert trainer.evaluate(text_rows(4))["eval_loss"] > 0


class Squares(torch.utils.data.Dataset[Any]):
    """A data set of someone's own."""

    def __init__(self, row: Any) -> None:
        self.row = row

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> Any:
        return self.row


def test_any_map_style_data_set_is_numbered() -> None:
    """Images often come as a torch data set."""
    assert [row[SAMPLE_INDEX] for row in indexed_rows(Dataset.from_list([{"x": 5}, {"x": 6}]))] == [0, 1]
    numbered = indexed_rows(Squares({"x": 5}))
    assert [numbered[at] for at in range(3)] == [{"x": 5, SAMPLE_INDEX: at} for at in range(3)]
    assert len(numbered) == 3
    assert indexed_rows(numbered) is numbered  # each trial of a search binds again
    with pytest.raises(TypeError, match="return dictionaries"):
        indexed_rows(Squares((1, 2)))[0]


def test_numbers_of_the_user_stay() -> None:
    """A subset of a larger set may carry the numbers of that set."""
    rows = Dataset.from_list([{SAMPLE_INDEX: 7}, {SAMPLE_INDEX: 3}])
    assert indexed_rows(rows) is rows


@pytest.mark.parametrize("dataset", [None, IterableDataset.from_generator(lambda: iter([{"x": 1}]))])
def test_streams_are_refused(dataset: Any) -> None:
    """A bank cannot be made for an unknown number of rows."""
    with pytest.raises(ValueError, match="pass a map-style data set, or a loss of in-batch negatives"):
        indexed_rows(dataset)


def test_classes_of_rows() -> None:
    """Negatives are drawn from other classes only where rows have one class each."""
    labels = class_labels(Dataset.from_dict({"label": [2, 0]}), "labels")
    assert labels is not None
    assert labels.tolist() == [2, 0]
    assert class_labels(Dataset.from_dict({"labels": [[1, 2], [0, 1]]}), "labels") is None
    assert class_labels(Dataset.from_dict({"labels": [0.5, 1.0]}), "labels") is None
    assert class_labels(Dataset.from_dict({"x": [1]}), "labels") is None
    assert class_labels(Squares({"labels": 1}), "labels") is None
