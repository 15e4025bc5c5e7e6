"""A run's checkpoints on disk: each is complete or absent, whatever happens while it is written or removed.

A checkpoint is written in `unfinished/` beside the others, sealed with the list of its files, and renamed into its
place; one that is removed is first renamed out of it. A process that dies in between leaves only what nobody resumes
from.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)

SEAL = "checkpoint.json"
"""The list of a checkpoint's files, written last."""
UNFINISHED = "unfinished"
"""Folder beside the checkpoints that are being written or removed."""

_NAME = re.compile(r"checkpoint-(\d+)")


def step_of(folder: Path) -> int | None:
    """The step whose checkpoint has this name; None where it is no checkpoint's."""
    found = _NAME.fullmatch(folder.name)
    return None if found is None else int(found.group(1))


def checkpoints(run: str | Path) -> list[Path]:
    """The checkpoints of a run, complete or not, by step."""
    run = Path(run)
    found = [] if not run.is_dir() else [path for path in run.iterdir() if path.is_dir() and step_of(path) is not None]
    return sorted(found, key=lambda path: step_of(path) or 0)


def flaw(folder: str | Path) -> str:
    """Why a checkpoint isn't complete; "" where it is."""
    folder = Path(folder)
    seal = folder / SEAL
    if not seal.is_file():
        return f"it has no {SEAL}, which is written last"
    try:
        files: dict[str, int] = json.loads(seal.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return f"its {SEAL} cannot be read"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
    return ""


def last_complete_checkpoint(run: str | Path) -> str | None:
    """The last complete checkpoint of a run, for `train(resume_from_checkpoint=...)`; None where there is none.

    A warning tells of each later one that is passed over.
    """
    for folder in reversed(checkpoints(run)):
        found = flaw(folder)
        if not found:
            return str(folder)
        logger.warning("passing over %s, which is not complete: %s.", folder, found)
    return None


def check_complete(folder: str | Path) -> None:
    """Refuse to resume from a checkpoint of ours that isn't complete; one that has no seal was written by others.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file is missing or cut off.
    """
    folder = Path(folder)
    if not folder.is_dir():
        others = ", ".join(path.name for path in checkpoints(folder.parent)) or "no checkpoint"
        raise FileNotFoundError(
            f"resume_from_checkpoint names {folder}, which is no folder ({folder.parent} holds {others}). Name one "
            "that is there, or pass True for the last complete one."
        )
    if not (folder / SEAL).is_file() and not (folder / "trainer_state.json").is_file():
        inside = ", ".join(path.name for path in checkpoints(folder)) or "no checkpoint"
        raise ValueError(
            f"{folder} is no checkpoint: it has no trainer_state.json, which says how far training had come; it holds "
            f"{inside}. Name a folder checkpoint-..., or pass True for the last one in output_dir. To begin anew from "
            "a saved student load it and pass it as model."
        )
    if not (folder / SEAL).is_file():
        logger.warning(
            "%s has no %s: it was not written by this trainer, or not to the end. Resuming from it as it is.",
            *(folder, SEAL),
        )
        return
    if found := flaw(folder):
        raise ValueError(
            f"{folder} is not complete: {found}. Resuming from it would start from other weights than were saved. "
            "Copy it again, or pass resume_from_checkpoint=True for the last complete one."
        )


def clear_unfinished(run: str | Path) -> None:
    """Remove what a process that died left behind of saving or removing a checkpoint."""
    shutil.rmtree(Path(run) / UNFINISHED, ignore_errors=True)


def publish(folder: Path, run: Path) -> Path:
    """Seal a written checkpoint and rename it into its place, in that order on the disk, too.

    Args:
        folder: the checkpoint, in `unfinished/`.
        run: the folder that it belongs into.

    Returns:
        Its place.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        _settle(path)
    listed = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files if path.name != SEAL}
    seal = folder / SEAL
    seal.write_text(json.dumps({"step": step_of(folder), "files": listed}, indent=2) + "\n", encoding="utf-8")
    for path in (seal, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        _settle(path)
    place = run / folder.name
    if place.exists():  # of a run that passed here before and was resumed further back
        remove(place)
    folder.rename(place)
    _settle(run)
    return place


def remove(folder: Path) -> None:
    """Remove a checkpoint in such a way that no half of it is ever taken for one."""
    grave = folder.parent / UNFINISHED / f"removed-{folder.name}"
    grave.parent.mkdir(exist_ok=True)
    shutil.rmtree(grave, ignore_errors=True)
    folder.rename(grave)
    shutil.rmtree(grave, ignore_errors=True)


def surplus(run: Path, limit: int | None, kept: set[Path]) -> list[Path]:
    """The oldest checkpoints beyond the limit.

    Args:
        run: the folder of the run.
        limit: how many may stay; None or 0: all.
        kept: those that stay whatever the limit is: the one just written, the best one.
    """
    found = checkpoints(run)
    if not limit or limit < 0:
        return []
    spare = sorted((path for path in found if path not in kept), key=lambda path: path.stat().st_mtime_ns)
    return spare[: max(0, len(found) - max(limit, len(kept)))]


def _settle(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # elsewhere a folder cannot be opened for it
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
