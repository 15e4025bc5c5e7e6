"""A toy data set of images in class folders, and image classifiers small enough to be trained on it in a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from toy_models import toy_vit
from transformers import PreTrainedModel, ViTImageProcessorPil

SHAPES = {"circle": "lime", "square": "blue", "triangle": "red"}
"""Class -> its colour; the names are in the order in which `datasets` numbers them."""
SIDE = 16


def write_shapes(
    folder: Path, train: int = 8, validation: int = 4, mode: str = "RGB", classes: Sequence[str] = tuple(SHAPES)
) -> Path:
    """Images of 20 by 20 pixels of a shape in its colour, at a random place on random grey.

    Args:
        folder: where the splits are written.
        train: images per class.
        validation: likewise.
        mode: Pillow's, "L" for grey.
        classes: names of the folders of circle, square and triangle.
    """
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("validation", validation)):
        for name, (shape, colour) in zip(classes, SHAPES.items(), strict=True):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (20, 20), (int(random.integers(40, 90)),) * 3)
                left, top = (int(x) for x in random.integers(0, 4, 2))
                _draw(ImageDraw.Draw(image), shape, (left, top, left + 15, top + 15), colour)
                image.convert(mode).save(folder / split / name / f"{number}.png")
    return folder


def _draw(pen: ImageDraw.ImageDraw, shape: str, box: tuple[int, int, int, int], colour: str) -> None:
    left, top, right, bottom = box
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([((left + right) // 2, top), (left, bottom), (right, bottom)], fill=colour)


def save_classifier(
    folder: Path, model: PreTrainedModel | None = None, names: Sequence[str] = (), **processing: Any
) -> Path:
    """Save an image classifier with an image processor; a ViT of three layers where none is given.

    Args:
        folder: of both.
        model: with random weights.
        names: of its classes; else LABEL_0, LABEL_1, LABEL_2.
        processing: settings of the processor.
    """
    model = toy_vit(layers=3, image_size=SIDE, patch_size=8) if model is None else model
    if names:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: index for index, name in enumerate(names)}
    model.save_pretrained(folder)
    ViTImageProcessorPil(**{"size": {"height": SIDE, "width": SIDE}, **processing}).save_pretrained(folder)
    return folder
