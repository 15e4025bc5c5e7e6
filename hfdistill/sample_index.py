"""A number for each row of the training set, for losses that keep something per row (memory banks)."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hfdistill.representations import SAMPLE_INDEX


class IndexedRows(Dataset[dict[str, Any]]):
    """A data set whose rows carry their own number under `SAMPLE_INDEX`.

    Args:
        rows: a map-style data set of mappings.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = self.rows[number]
        if not isinstance(row, Mapping):
            raise TypeError(
                f"a row of the training set must be a mapping to carry its number, got {type(row).__name__}. The loss "
                "keeps something for each row and must know which it sees; return dictionaries."
            )
        return {**row, SAMPLE_INDEX: number}


def indexed_rows(dataset: Any) -> Any:
    """The same rows with their numbers; as it is where it has them.

    Args:
        dataset: a `datasets.Dataset`, or any map-style data set of mappings.

    Raises:
        ValueError: there is no data set, or it is a stream, whose rows have no number.
    """
    if dataset is None or not isinstance(dataset, Sized) or isinstance(dataset, datasets.IterableDataset):
        raise ValueError(
            f"the objective keeps something for each training row (a memory bank), but train_dataset is "
            f"{'None' if dataset is None else f'a {type(dataset).__name__}, a stream without a length'}. Rows must be "
            "numbered and counted before training; pass a map-style data set, or a loss of in-batch negatives "
            "(InBatchContrastLoss)."
        )
    if isinstance(dataset, IndexedRows) or (
        isinstance(dataset, datasets.Dataset) and SAMPLE_INDEX in dataset.column_names
    ):
        return dataset
    if not isinstance(dataset, datasets.Dataset):
        return IndexedRows(dataset)
    return dataset.add_column(SAMPLE_INDEX, list(range(len(dataset))))


def class_labels(dataset: Any, label_name: str) -> Tensor | None:
    """The class of each row, (rows,) long, on the CPU; None where rows have no class.

    Only a `datasets.Dataset` is asked: reading all rows of another kind may decode all its images.

    Args:
        dataset: the training set.
        label_name: name of the labels in a batch; collators call a column "label" so too.
    """
    if not isinstance(dataset, datasets.Dataset):
        return None
    name = next((name for name in (label_name, "label", "labels") if name in dataset.column_names), None)
    if name is None:
        return None
    labels = dataset[name][:]
    if not all(isinstance(label, int) for label in labels):
        return None
    return torch.tensor(labels)
