"""The classes of labelled rows: one list of names for all splits, and each row's index in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import ClassLabel, Dataset, Value

logger = logging.getLogger(__name__)

Indices = npt.NDArray[np.int64]


def class_indices(
    splits: Mapping[str, Dataset], columns: Mapping[str, str], order: Sequence[str] | None = None
) -> tuple[tuple[str, ...], dict[str, Indices]]:
    """Names of the classes, and split -> index of each row's class.

    Args:
        splits: the first is the one to train on, whose classes count.
        columns: split -> column of the classes: ClassLabel, text, or whole numbers from 0 on.
        order: names of the classes in the order wanted; None: as they are.

    Raises:
        ValueError: a column that holds no classes, rows without a class, classes that training has not, the same
            ones in another order, an `order` of others, fewer than two classes.
    """
    known = {split: _names(split, rows, columns[split]) for split, rows in splits.items()}
    first = next(iter(splits))
    names = known[first]
    for split, others in known.items():
        if unknown := sorted(set(others) - set(names)):
            raise ValueError(
                f"split {split} has classes that split {first} has not: {unknown[:8]}, where that has {names[:8]}. No "
                "model can learn them; see whether they are spelt alike."
            )
        if isinstance(splits[split].features[columns[split]], ClassLabel) and others != names and order is None:
            raise ValueError(
                f"splits {first} and {split} number the same classes differently: {names[:12]} and {others[:12]}. Say "
                f"which order is meant: label_order={names}; rows are matched by name."
            )
    if len(names) < 2:
        raise ValueError(f"expected two classes or more, got {names}: there is nothing to tell apart.")
    wanted = list(names if order is None else order)
    if sorted(wanted) != sorted(names):
        raise ValueError(
            f"label_order must list each class of the data once, {names[:12]}, got {wanted[:12]}. Spell the classes "
            "as the data does."
        )
    place = {name: index for index, name in enumerate(wanted)}
    found = {}
    for split, others in known.items():
        places = np.array([place[name] for name in others])
        found[split] = places[_positions(split, splits[split], columns[split], others)]
    _check_taught(wanted, found)
    return tuple(wanted), found


def _check_taught(names: list[str], found: Mapping[str, Indices]) -> None:
    """Refuse classes that are asked for and not taught; what is neither is told."""
    (first, taught), *others = found.items()
    absent = set(range(len(names))) - set(taught.tolist())
    for split, classes in others:
        if asked := [names[index] for index in sorted(absent & set(classes.tolist()))]:
            raise ValueError(
                f"split {split} has rows of {asked[:8]}, of which split {first} has none. No model can learn "
                "them; see whether they are spelt alike."
            )
    if absent:
        logger.warning("no row of %s", ", ".join(names[index] for index in sorted(absent)))


def _names(split: str, rows: Dataset, column: str) -> list[str]:
    feature = rows.features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    if not isinstance(feature, Value) or feature.dtype.startswith(("float", "double", "time", "date", "binary")):
        raise ValueError(
            f"column {column} of split {split} must hold one class per row (ClassLabel, text or whole numbers), got "
            f"{feature}. Name the right one: label_column=..."
        )
    values = {value for value in rows.unique(column) if value is not None and value != -1}
    if not feature.dtype.startswith(("int", "uint")):
        return sorted(map(str, values))
    if min(values, default=0) < 0 or max(values, default=0) >= 100_000:
        raise ValueError(
            f"column {column} of split {split} must number classes from 0 on, got {min(values)} to {max(values)}. A "
            "class is the index of a model's output; cast the column: dataset.class_encode_column(...)."
        )
    return [str(index) for index in range(max(values, default=-1) + 1)]


def _positions(split: str, rows: Dataset, column: str, names: list[str]) -> Indices:
    """Of each row its class's place in `names`."""
    values: list[Any] = rows[column][:]
    missing = [number for number, value in enumerate(values) if value is None or value == -1]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(values)} rows of split {split} have no class (row {missing[0]} is the first): "
            "they can be neither trained on nor scored. Name a split that has them, evaluation_split=..., or remove "
            "these rows."
        )
    if isinstance(rows.features[column], ClassLabel) or not isinstance(values[0], str | bool):
        positions = np.asarray(values, dtype=np.int64)
        if positions.min() < 0 or positions.max() >= len(names):
            raise ValueError(
                f"split {split} has classes from {positions.min()} to {positions.max()}, but names for {len(names)}. "
                "Name the right column: label_column=..."
            )
        return positions
    places = {name: place for place, name in enumerate(names)}
    return np.array([places[str(value)] for value in values], dtype=np.int64)
