"""Where images come from: a data set on the hub, a folder of class folders, a folder of parquet files.

Opens what is there, split by split, under the names found. Which split and column is used is not decided here.
"""

from __future__ import annotations

import glob
import logging
import re
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetNotFoundError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from pyarrow import ArrowInvalid  # type: ignore[import-untyped]
from pyarrow.parquet import read_metadata  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

_TABLE = re.compile(r"(?P<split>\w+)(-\d+-of-(?P<parts>\d+))?\.parquet")
_ENDINGS = frozenset(ImageFolder.EXTENSIONS)


def open_images(source: str | Path | DatasetDict, cache_dir: str | Path | None = None) -> dict[str, Dataset]:
    """Split -> rows, none of them empty.

    Args:
        source: see `load_images`.
        cache_dir: where `datasets` keeps its tables.

    Raises:
        ConnectionError: the hub cannot be reached.
        ValueError: there is no such data set, or a part of it is missing or empty.
    """
    cache = None if cache_dir is None else str(cache_dir)
    if isinstance(source, DatasetDict):
        opened = dict(source)
    elif (folder := Path(source).expanduser()).is_dir():
        opened = _from_folder(folder, cache)
    elif folder.exists() or isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ValueError(
            f"expected a folder of images or the hub name of a data set, got {source}, which is "
            f"{'a file' if folder.exists() else 'neither here nor a hub name'}. Give the folder itself, unpacked."
        )
    else:
        opened = _from_hub(source, cache)
    for split, rows in opened.items():
        if len(rows) == 0:
            raise ValueError(
                f"split {split} of {_shown(source)} has no rows: nothing can be learnt or measured on it."
            )
    return opened


def _shown(source: str | Path | DatasetDict) -> str:
    return "the data set" if isinstance(source, DatasetDict) else str(source)


def _from_hub(name: str, cache: str | None) -> dict[str, Dataset]:
    try:
        return dict(load_dataset(name, cache_dir=cache))
    except DatasetNotFoundError as error:
        raise ValueError(
            f"there is no folder {name} here, and no data set {name} on the hub that may be read ({error}). See to "
            "the name, or log in where it is private or gated: hf auth login."
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"there is no folder {name} here, and the hub, where a data set may have this name, cannot be reached "
            f"({error}). Give a folder, one with a folder of images per class or one of parquet files, or allow the "
            "network."
        ) from error


def _from_folder(folder: Path, cache: str | None) -> dict[str, Dataset]:
    for place in (folder, folder / "data"):  # the hub keeps its tables below data/
        if files := sorted(place.glob("*.parquet")):
            return _from_parquet(files, cache)
    return _from_class_folders(folder, cache)


def _from_parquet(files: list[Path], cache: str | None) -> dict[str, Dataset]:
    splits: dict[str, list[str]] = {}
    for path in files:
        found = _TABLE.fullmatch(path.name)
        if found is None:
            logger.warning("%s is not named after a split, such as train.parquet; left out", path)
            continue
        paths = splits.setdefault(found["split"], [])
        paths.append(str(path))
        expected = len(list(path.parent.glob(f"{found['split']}-*-of-{found['parts']}.parquet")))
        if found["parts"] and expected != int(found["parts"]):
            raise ValueError(
                f"{path.name} is one of {int(found['parts'])} parts, of which {path.parent} holds {expected}. The "
                "split would lack rows; copy the rest."
            )
    for split, paths in splits.items():
        if not sum(_row_count(path) for path in paths):  # datasets would name no file
            raise ValueError(f"split {split} has no rows: {', '.join(paths)}. Write it again.")
    # Split by split: together, a split with other columns fails in datasets before it can be named.
    return {
        split: load_dataset(
            "parquet", data_files=[glob.escape(path) for path in paths], split="train", cache_dir=cache
        )
        for split, paths in splits.items()
    }


def _row_count(path: str) -> int:
    try:
        return int(read_metadata(path).num_rows)
    except ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file, or is cut short ({error}). Copy it again.") from error


def _from_class_folders(folder: Path, cache: str | None) -> dict[str, Dataset]:
    below = _folders(folder)
    splits = {path.name: path for path in below if _folders(path)}
    if splits and (others := [path.name for path in below if path.name not in splits]):
        logger.warning("%s: no class folders in %s; left out", folder, ", ".join(others))
    splits = splits or {"train": folder}
    counts = {split: _count_images(place) for split, place in splits.items()}
    if not any(counts.values()):
        raise ValueError(
            f"expected in {folder} a folder of images per class (cat/, dog/; or train/cat/, validation/cat/), or "
            f"train.parquet and validation.parquet, found {sorted(path.name for path in folder.iterdir())[:8]}. Give "
            "the folder that holds them."
        )
    if empty := [str(splits[split]) for split, count in counts.items() if not count]:
        raise ValueError(
            f"no image in {', '.join(empty)}: nothing can be learnt or measured there. Fill or remove it."
        )
    loaded = load_dataset(  # together, so that all splits number the classes alike
        "imagefolder",
        data_files={split: f"{glob.escape(str(place.absolute()))}/*/*" for split, place in splits.items()},
        drop_labels=False,
        drop_metadata=True,
        cache_dir=cache,
    )
    for split, count in counts.items():
        if len(loaded[split]) != count:
            raise ValueError(
                f"{splits[split]} holds {count} images, of which datasets finds {len(loaded[split])}: it passes over "
                "folders that begin with two underscores. Rename them."
            )
    return dict(loaded)


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))


def _count_images(place: Path) -> int:
    """Images in the class folders; what else lies there is told."""
    images, others = [], []
    for folder in _folders(place):
        files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        mine = [path for path in files if path.suffix.lower() in _ENDINGS]
        if deep := [path for path in mine if path.parent != folder]:
            raise ValueError(
                f"expected the images of a class in its folder itself, found {deep[0]} deeper in {folder}. Which "
                "class is meant? Move the images up."
            )
        if not mine:
            logger.warning("%s: no image; left out", folder)
        images += mine
        others += [path for path in files if path.suffix.lower() not in _ENDINGS]
    if others:
        logger.warning("%s: %d files are no images by name and left out, such as %s", place, len(others), others[0])
    return len(images)
