"""Rows of images and class labels that can be trained on, from a hub data set or a folder.

Every image was decoded once, every row has a class, and all splits name and number the classes alike. Images stay as
they are in the files; ImageCollator decodes them batch by batch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from hfdistill.images.decoding import decode_image, require_pillow
from hfdistill.images.labels import Indices, class_indices
from hfdistill.images.sources import open_images

logger = logging.getLogger(__name__)

HELD_OUT = 0.1
"""Share of each class that is held out for evaluation where a source has but one split."""

_SPLITS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_SHOWN = 5


@dataclass(frozen=True)
class ImageRows:
    """What `load_images` found.

    Args:
        rows: splits "train" and `evaluation_split`, with the columns image (datasets.Image, not decoded) and labels
            (ClassLabel).
        evaluation_split: name of the split to evaluate on.
        label_names: of the classes, by index.
        skipped: split -> images that cannot be decoded and were left out.
    """

    rows: DatasetDict
    evaluation_split: str
    label_names: tuple[str, ...]
    skipped: Mapping[str, tuple[str, ...]]

    @property
    def train(self) -> Dataset:
        """Rows to train on."""
        return self.rows["train"]

    @property
    def evaluation(self) -> Dataset:
        """Rows to evaluate on."""
        return self.rows[self.evaluation_split]


def load_images(
    source: str | Path | DatasetDict,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    label_order: Sequence[str] | None = None,
    evaluation_split: str | None = None,
    train_rows: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    on_corrupt: str = "refuse",
    channels: int = 3,
    num_proc: int | None = None,
) -> ImageRows:
    """Load the training and the evaluation split of an image data set.

    Args:
        source: name of a data set on the hub; a folder with a folder of images per class, below train, validation or
            test, or without these; a folder with train.parquet, validation.parquet or test.parquet, or their parts
            (train-00000-of-00002.parquet); or splits that are loaded already.
        image_column: the image; None: the only column of images, or the one called image or img.
        label_column: its class; None: label, labels or fine_label, or the only ClassLabel.
        label_order: names of the classes in the order of a model's outputs; rows are renumbered. None: as they are.
        evaluation_split: None: validation if there is one, else test, else a tenth of each class is held out.
        train_rows: train on this many rows, drawn at random; a smaller draw is the beginning of a larger one.
        seed: of this draw, and of what is held out.
        cache_dir: where `datasets` keeps its tables; its own default without it.
        on_corrupt: what to do about images that cannot be decoded: "refuse" the data set, or "skip" them.
        channels: of the model, 3 or 1.
        num_proc: processes that decode each image once to find these; what they find is kept in the cache.

    Raises:
        ConnectionError: the hub cannot be reached.
        ImportError: Pillow is not installed.
        ValueError: no such data set; a split, a column or rows are missing; images that cannot be decoded; rows
            without a class; classes that training has not; more train_rows than rows.
    """
    require_pillow()
    if on_corrupt not in ("refuse", "skip"):
        raise ValueError(f"on_corrupt must be 'refuse' or 'skip', got {on_corrupt!r}.")
    opened = open_images(source, cache_dir)
    places, evaluation = _chosen_splits(opened, evaluation_split)
    used = {name: opened[name] for name in dict.fromkeys(places.values())}
    columns = {split: _label_column(split, rows, label_column) for split, rows in used.items()}
    names, classes = class_indices(used, columns, label_order)
    images = {split: _images(split, rows, image_column) for split, rows in used.items()}
    chosen = {name: np.arange(len(used[place])) for name, place in places.items()}
    if places["train"] == places[evaluation]:
        chosen = _held_out(classes[places["train"]], evaluation, seed)
    if train_rows is not None:
        chosen["train"] = _drawn(chosen["train"], train_rows, seed)
    made, skipped = DatasetDict(), {}
    for name, place in places.items():
        kept, skipped[name] = _decodable(images[place], chosen[name], place, on_corrupt, channels, num_proc)
        rows = images[place].select(kept)
        labels = classes[place][kept]
        made[name] = rows.add_column("labels", labels, feature=ClassLabel(names=list(names)))
    return ImageRows(made, evaluation, names, {name: found for name, found in skipped.items() if found})


def _chosen_splits(opened: Mapping[str, Dataset], wanted: str | None) -> tuple[dict[str, str], str]:
    """Train and evaluation split -> the split of the source they come from; and the name of the latter."""
    by_name = {name: next((n for n in spellings if n in opened), None) for name, spellings in _SPLITS.items()}
    train = by_name["train"]
    if train is None:
        raise ValueError(f"expected a split train, found {sorted(opened)}. Rename the one to train on to train.")
    if wanted is not None:
        place = by_name.get(wanted) or wanted
        if place not in opened or place == train:
            raise ValueError(
                f"expected an evaluation split {wanted!r} beside {train}, found {sorted(set(opened) - {train})}. Name "
                "one of these, or none: then validation, test or a part of train is taken."
            )
        return {"train": train, wanted: place}, wanted
    for name in ("validation", "test"):
        found = by_name[name]
        if found is not None:
            logger.info("evaluating on the split %s", found)
            return {"train": train, name: found}, name
    if others := sorted(set(opened) - {train}):
        raise ValueError(
            f"expected a split validation or test, found {others}. Say which is to be evaluated on: "
            f"evaluation_split={others[0]!r}."
        )
    return {"train": train, "validation": train}, "validation"


def _label_column(split: str, rows: Dataset, given: str | None) -> str:
    classes = [name for name, feature in rows.features.items() if isinstance(feature, ClassLabel)]
    return _column("label", split, rows, given, _LABEL_COLUMNS, classes)


def _images(split: str, rows: Dataset, given: str | None) -> Dataset:
    """The column of images alone, called image, not decoded."""
    likely = [name for name, feature in rows.features.items() if _holds_images(feature)]
    column = _column("image", split, rows, given, [name for name in _IMAGE_COLUMNS if name in likely], likely)
    feature = rows.features[column]
    if not _holds_images(feature) and not (isinstance(feature, Value) and feature.dtype in ("binary", "string")):
        raise ValueError(
            f"column {column} of split {split} must hold encoded images (datasets.Image, bytes or paths), got "
            f"{feature}. Name another: image_column=..."
        )
    rows = rows.select_columns([column])
    rows = rows if column == "image" else rows.rename_column(column, "image")
    return rows.cast_column("image", Image(decode=False))


def _holds_images(feature: Any) -> bool:
    return isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _column(
    kind: str, split: str, rows: Dataset, given: str | None, usual: Sequence[str], likely: Sequence[str]
) -> str:
    if given is not None:
        if given in rows.column_names:
            return given
        raise ValueError(
            f"split {split} has no column {given!r}; it has {rows.column_names}. Correct {kind}_column, or leave it "
            "out."
        )
    found = next((name for name in usual if name in rows.column_names), None)
    if found is None and len(likely) == 1:
        found = likely[0]
    if found is None:
        raise ValueError(
            f"cannot tell which column of split {split} is the {kind}: it has {rows.column_names}. Say so: "
            f"{kind}_column=..."
        )
    return found


def _held_out(classes: Indices, evaluation: str, seed: int) -> dict[str, Indices]:
    """Row numbers to train on, and of each class a tenth, at least one of two or more, to evaluate on."""
    rng = np.random.default_rng(seed)
    parts = []
    for index in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == index))
        parts.append(members[: max(round(HELD_OUT * len(members)), int(len(members) > 1))])
    out = np.sort(np.concatenate(parts))
    if len(out) == 0:
        raise ValueError(
            "there is no split to evaluate on, and no class has two images, so none can be held out. Add images, or a "
            "split validation."
        )
    logger.warning(
        "no split to evaluate on: %d of %d rows of train, a tenth of each class, are held out as %s (seed %d)",
        *(len(out), len(classes), evaluation, seed),
    )
    return {"train": np.setdiff1d(np.arange(len(classes)), out), evaluation: out}


def _drawn(numbers: Indices, count: int, seed: int) -> Indices:
    if not 1 <= count <= len(numbers):
        raise ValueError(
            f"expected train_rows from 1 to {len(numbers)}, the rows to train on, got {count}. A result must not "
            "claim more rows than it had; leave train_rows out to train on all."
        )
    return numbers[np.random.default_rng(seed).permutation(len(numbers))[:count]]


def _decodable(
    images: Dataset, numbers: Indices, split: str, on_corrupt: str, channels: int, num_proc: int | None
) -> tuple[Indices, tuple[str, ...]]:
    """Those of the rows whose image can be decoded, and the names of the others."""
    found = images.select(numbers).map(
        _faults,
        batched=True,
        batch_size=100,
        remove_columns=["image"],
        features=Features({"fault": Value("string")}),
        fn_kwargs={"channels": channels},
        num_proc=num_proc,
        desc=f"decoding {split} once",
    )
    faults = found["fault"][:]
    names = tuple(
        f"row {number} ({fault})" for number, fault in zip(numbers.tolist(), faults, strict=True) if fault is not None
    )
    if not names:
        return numbers, ()
    few = "; ".join(names[:_SHOWN]) + ("; ..." if len(names) > _SHOWN else "")
    told = f"{len(names)} of {len(numbers)} images of split {split} cannot be decoded: {few}"
    if on_corrupt == "refuse" or len(names) == len(numbers):
        raise ValueError(f"{told}. Replace or remove them, or train without them: on_corrupt='skip'.")
    logger.warning("%s. They are left out.", told)
    return numbers[np.array([fault is None for fault in faults])], names


def _faults(batch: Mapping[str, Any], channels: int) -> dict[str, list[str | None]]:
    """What is wrong with each image, None for nothing."""
    faults: list[str | None] = []
    for image in batch["image"]:
        try:
            decode_image(image or {}, channels)
            faults.append(None)
        except ValueError as error:
            path = (image or {}).get("path")
            faults.append(f"{path}: {error}" if path else str(error))
    return {"fault": faults}
