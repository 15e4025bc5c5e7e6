"""Toy image data sets for the tests: pictures of one colour, whose class is the colour, in folders and in memory."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image

from hfdistill.images.decoding import decode_image
from hfdistill.images.rows import ImageRows

COLOURS = ("blue", "green", "red")


def encoded(colour: str = "red") -> dict[str, Any]:
    """A small picture as a row holds it."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": f"{colour}.png"}


def write_folder(folder: Path, counts: Mapping[str, int], classes: Sequence[str] = COLOURS) -> Path:
    """Class folders of pictures in the class's colour: below each split, or below `folder` for the split ""."""
    for split, count in counts.items():
        for colour in classes:
            place = folder / split / colour
            place.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), colour).save(place / f"{number}.png")
    return folder


def rows_of(labels: Sequence[Any], feature: Any = None, label: str = "label") -> Dataset:
    """Rows in memory, all red, with these labels: indices of COLOURS, if no other feature is given."""
    columns = {"image": [encoded() for _ in labels], label: list(labels)}
    features = {"image": ImageFeature(), label: ClassLabel(names=list(COLOURS)) if feature is None else feature}
    return Dataset.from_dict(columns, features=Features(features))


def splits(train: Any = None, test: Any = None, **more: Dataset) -> DatasetDict:
    """A small data set in memory; what a test is about, it gives itself."""
    good = rows_of([0, 1, 2, 0, 1, 2])
    return DatasetDict({"train": good if train is None else train, "test": good if test is None else test, **more})


def check_colours(found: ImageRows) -> None:
    """Every picture has the class of its colour, in both splits."""
    names = {(0, 0, 255): "blue", (0, 128, 0): "green", (255, 0, 0): "red"}
    for split in found.rows.values():
        for row in split:
            colour = names[decode_image(row["image"]).getpixel((0, 0))]
            assert found.label_names[row["labels"]] == colour == split.features["labels"].names[row["labels"]]
