"""Where images come from: class folders, parquet files, the hub, and what would be lost on the way."""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image as ImageFeature
from datasets.exceptions import DatasetNotFoundError
from image_toys import COLOURS, check_colours, encoded, write_folder
from PIL import Image

import hfdistill.images.sources
from hfdistill.images.rows import load_images


def test_class_folders_with_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The layout that most people have; images must stay encoded, or memory holds the whole set decoded."""
    folder = write_folder(tmp_path / "set [1]", {"train": 4, "val": 2, "test": 1})
    (folder / "train" / "red" / "notes.txt").write_text("red ones", encoding="utf-8")
    (folder / "train" / "metadata.csv").write_text("file_name,label\n", encoding="utf-8")
    with caplog.at_level(logging.INFO):
        found = load_images(folder, cache_dir=tmp_path / "cache")
    assert (found.evaluation_split, found.label_names, found.skipped) == ("validation", COLOURS, {})
    assert (len(found.train), len(found.evaluation)) == (12, 6)
    assert found.train.features["image"] == ImageFeature(decode=False)
    assert "evaluating on the split val" in caplog.text
    assert "notes.txt" in caplog.text
    check_colours(found)
    assert load_images(folder, cache_dir=tmp_path / "cache", evaluation_split="test").evaluation.num_rows == 3


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """Vehicles are a usual data set; its class folders are no splits."""
    folder = write_folder(tmp_path / "set", {"": 4}, classes=("blue", "red"))
    (folder / "blue").rename(folder / "train")
    assert load_images(folder, cache_dir=tmp_path / "cache").label_names == ("red", "train")


def test_parquet_parts_and_plain_columns(tmp_path: Path) -> None:
    """Tables from elsewhere name columns as CIFAR-100 does, come in parts, and lack the features' metadata."""
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    for name, colours in (("train-00000-of-00002", "blue green"), ("train-00001-of-00002", "red"), ("valid", "red")):
        images = [encoded(colour) for colour in colours.split()]
        classes = [COLOURS.index(colour) for colour in colours.split()]
        pq.write_table(
            pa.table({"img": images, "fine_label": classes, "coarse_label": classes}), folder / f"{name}.parquet"
        )
    found = load_images(tmp_path / "set", cache_dir=tmp_path / "cache")
    assert found.train.column_names == ["image", "labels"]
    assert (found.train["labels"][:], found.evaluation["labels"][:]) == ([0, 1, 2], [2])
    assert (found.label_names, found.evaluation_split) == (("0", "1", "2"), "validation")
    assert [row["image"]["path"] for row in found.train] == [f"{colour}.png" for colour in COLOURS]


@pytest.mark.data
def test_real_rows(shared: Path, tmp_path: Path) -> None:
    """CIFAR-10 as the hub has it: a struct of bytes, a ClassLabel, a test split."""
    for split in ("train", "test"):
        table = next(pq.ParquetFile(shared / "data" / "cifar10" / f"{split}.parquet").iter_batches(200))
        pq.write_table(pa.Table.from_batches([table]), tmp_path / f"{split}.parquet")
    found = load_images(tmp_path, cache_dir=tmp_path / "cache", train_rows=20)
    assert (len(found.train), len(found.evaluation), found.evaluation_split) == (20, 200, "test")
    assert found.label_names[:2] == ("airplane", "automobile")


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    """A wrong path is the commonest mistake; datasets' own messages name neither the path nor what was expected."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "flat" / "0.png")
    for folder in ("empty", "flat"):
        with pytest.raises(ValueError, match="a folder of images per class"):
            load_images(tmp_path / folder)
    with pytest.raises(ValueError, match="neither here nor a hub name"):
        load_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="which is a file"):
        load_images(str(tmp_path / "flat" / "0.png"))


def test_class_folders_that_would_lose_images(tmp_path: Path) -> None:
    """The package datasets reads what it finds and says nothing of the rest."""
    deep = write_folder(tmp_path / "deep", {"train": 1, "test": 1})
    (deep / "train" / "red" / "more").mkdir()
    Image.new("L", (4, 4)).save(deep / "train" / "red" / "more" / "0.png")
    with pytest.raises(ValueError, match="deeper in"):
        load_images(deep, cache_dir=tmp_path / "cache")
    hidden = write_folder(tmp_path / "hidden", {"train": 2, "test": 1})
    (hidden / "train" / "red").rename(hidden / "train" / "__red")
    with pytest.raises(ValueError, match="6 images, of which datasets finds 4"):
        load_images(hidden, cache_dir=tmp_path / "cache")
    bare = write_folder(tmp_path / "bare", {"train": 1})
    (bare / "test" / "red").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no image in .*test"):
        load_images(bare, cache_dir=tmp_path / "cache")


def test_parquet_that_would_lose_rows(tmp_path: Path) -> None:
    """A part not copied is a smaller data set without an error."""
    table = pa.table({"image": [encoded()], "label": [0]})
    pq.write_table(table, tmp_path / "train-00000-of-00002.parquet")
    with pytest.raises(ValueError, match="one of 2 parts"):
        load_images(tmp_path)
    pq.write_table(table.slice(0, 0), tmp_path / "train-00001-of-00002.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="split test has no rows"):
        load_images(tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="not a parquet file"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ConnectionError("Couldn't reach"), ConnectionError, "Give a folder"),
        (DatasetNotFoundError("doesn't exist"), ValueError, "no data set owner/name on the hub"),
    ],
)
def test_a_hub_name_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
) -> None:
    """Without a network the way out is a folder, and a misspelt name looks like a hub name."""

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(hfdistill.images.sources, "load_dataset", refuse)
    with pytest.raises(kind, match=message):
        load_images("owner/name")
