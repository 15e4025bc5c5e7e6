"""Rows of images: splits, columns, draws, and images that cannot be decoded."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from image_toys import check_colours, encoded, rows_of, splits, write_folder
from PIL import Image

import hfdistill.images.rows
from hfdistill.images.rows import load_images


def test_one_level_of_class_folders_is_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows that a student is trained on must not be those that it is measured on, and no class may be missing."""
    folder = write_folder(tmp_path / "set", {"": 20})
    with caplog.at_level(logging.WARNING):
        found, again, other = (load_images(folder, cache_dir=tmp_path / "cache", seed=seed) for seed in (0, 0, 1))
    assert "6 of 60 rows of train" in caplog.text
    check_colours(found)
    train, held = ({row["image"]["path"] for row in split} for split in (found.train, found.evaluation))
    assert (len(train), len(held), train & held) == (54, 6, set())
    assert np.bincount(found.evaluation["labels"]).tolist() == [2, 2, 2]
    assert found.evaluation["image"][:] == again.evaluation["image"][:] != other.evaluation["image"][:]


def damaged(folder: Path) -> list[str]:
    """Break files of a class folder in three ways; their names."""
    content = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(content, "JPEG")
    bad = {"a.jpg": content.getvalue()[:-500], "b.jpg": b"", "c.jpg": b"<html>404</html>"}
    for name, content_of in bad.items():
        (folder / name).write_bytes(content_of)
    return list(bad)


def test_images_that_cannot_be_decoded_are_refused(tmp_path: Path) -> None:
    """Found in the third hour of training they cost three hours; the message must name every kind of damage."""
    folder = write_folder(tmp_path / "set", {"train": 4, "test": 2})
    names = damaged(folder / "train" / "green")
    with pytest.raises(ValueError, match="3 of 15 images of split train cannot be decoded") as error:
        load_images(folder, cache_dir=tmp_path / "cache")
    assert all(str(folder / "train" / "green" / name) in str(error.value) for name in names)
    assert all(word in str(error.value) for word in ("truncated", "0 bytes", "UnidentifiedImageError", "skip"))


def test_images_that_cannot_be_decoded_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever leaves rows out must be told how many and which; labels must stay with their images."""
    folder = write_folder(tmp_path / "set", {"train": 4, "test": 2})
    names = damaged(folder / "train" / "green")
    found = load_images(folder, cache_dir=tmp_path / "cache", on_corrupt="skip")
    check_colours(found)
    assert (len(found.train), len(found.evaluation)) == (12, 6)
    assert [name in told for name, told in zip(names, found.skipped["train"], strict=True)] == [True] * 3
    assert list(found.skipped) == ["train"]
    assert "3 of 15 images" in caplog.text


def test_the_row_is_named_by_its_number_in_the_source() -> None:
    """After a draw and a hold-out the position in what is left would send the reader to a good row."""
    rows = [encoded() for _ in range(40)]
    rows[17] = {"bytes": b"", "path": None}
    data = Dataset.from_dict(
        {"image": rows, "label": [0, 1] * 20},
        features=Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])}),
    )
    for drawn in (None, 36):
        with pytest.raises(ValueError, match=r"row 17 \(0 bytes\)"):
            load_images(DatasetDict({"train": data}), train_rows=drawn)


def test_nothing_is_left(tmp_path: Path) -> None:
    """Skipping everything would end in an error of the data loader that names no image."""
    rows = Dataset.from_dict({"image": [{"bytes": b"", "path": None}] * 2, "label": ["a", "b"]})
    with pytest.raises(ValueError, match="2 of 2 images of split train"):
        load_images(splits(rows, rows), on_corrupt="skip")


def test_images_are_decoded_once_for_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On ImageNet the check takes an hour: it must be kept, yet notice a file that has changed."""
    folder = write_folder(tmp_path / "set", {"train": 2, "test": 2})
    load_images(folder, cache_dir=tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(hfdistill.images.rows, "decode_image", lambda *_: pytest.fail("decoded again"))
        load_images(folder, cache_dir=tmp_path / "cache")
    (folder / "train" / "red" / "0.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"red.0\.png"):
        load_images(folder, cache_dir=tmp_path / "cache")


SCANS = Dataset.from_dict({"scan": [1, 2], "label": [0, 1]})
ARRAYS = Dataset.from_dict({"image": [[1, 2], [3, 4]], "label": [0, 1]})


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (DatasetDict({"test": rows_of([0])}), {}, "expected a split train"),
        (splits(), {"evaluation_split": "validation"}, r"'validation' beside train, found \['test'\]"),
        (splits(), {"evaluation_split": "train"}, "beside train"),
        (DatasetDict({"train": rows_of([0]), "vaild": rows_of([0])}), {}, "evaluation_split='vaild'"),
        (splits(test=rows_of([])), {}, "split test of the data set has no rows"),
        (DatasetDict({"train": rows_of([0, 1, 2])}), {}, "no class has two images"),
        (splits(), {"train_rows": 7}, "from 1 to 6"),
        (splits(), {"on_corrupt": "ignore"}, "'refuse' or 'skip'"),
        (splits(), {"label_column": "fine"}, "no column 'fine'"),
        (splits(), {"image_column": "picture"}, "no column 'picture'"),
        (splits(), {"image_column": "label"}, "must hold encoded images"),
        (splits(rows_of(["a"], Value("string"), label="kind")), {}, "which column of split train is the label"),
        (splits(SCANS, SCANS), {}, "which column of split train is the image"),
        (splits(ARRAYS, ARRAYS), {"image_column": "image"}, "must hold encoded images"),
    ],
)
def test_splits_columns_and_options_that_do_not_fit(data: DatasetDict, options: Any, message: str) -> None:
    """A wrong guess here would train on something else; each message says what is there."""
    with pytest.raises(ValueError, match=message):
        load_images(data, **options)


def test_smaller_draws_begin_larger_ones() -> None:
    """Figures at 1000 and at 5000 rows are comparable only if the first are among the second."""
    data = splits(rows_of([number % 3 for number in range(30)]))
    small, large = (load_images(data, train_rows=count).train["labels"][:] for count in (5, 20))
    assert small == large[:5]
    assert load_images(data, train_rows=20, seed=1).train["labels"][:] != large
