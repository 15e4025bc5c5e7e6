"""What to say when a checkpoint cannot be written: the disk is full, a quota is reached, the folder is read-only."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hfdistill.checkpoints.folders import UNFINISHED, checkpoints, flaw

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CANNOT_WRITE = {*_NO_ROOM, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
# torch and safetensors tell of a failed write in words of their own, with no number of the system's
_WORDS = re.compile(r"PytorchStreamWriter|inline_container|I/?O ?error|No space left|File too large", re.IGNORECASE)


@contextmanager
def explained_storage(run: Path, name: str, writes: bool) -> Iterator[None]:
    """Explain an error of writing a checkpoint, and give back the room that its beginning takes.

    Args:
        run: the folder of the run.
        name: of the checkpoint.
        writes: whether this process may clean up.

    Raises:
        OSError: it could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = _number(error)
        if number is None:
            raise
        free = shutil.disk_usage(run).free if run.is_dir() else 0
        if writes:
            shutil.rmtree(run / UNFINISHED, ignore_errors=True)
        raise OSError(number, _explanation(run, name, number, free)) from error


def _number(error: Exception) -> int | None:
    """The system's number of a failed write; None where the error is another."""
    if isinstance(error, OSError):
        return error.errno if error.errno in _CANNOT_WRITE else None
    if not _WORDS.search(str(error)):
        return None
    told = re.search(r"(?:code: |os error )(\d+)", str(error))
    return int(told.group(1)) if told else errno.ENOSPC if "space" in str(error) else errno.EIO


def _explanation(run: Path, name: str, number: int, free: int) -> str:
    whole = [folder for folder in checkpoints(run) if not flaw(folder)]
    last = f"the last complete checkpoint is {whole[-1]}" if whole else "there is no complete checkpoint yet"
    size = sum(path.stat().st_size for path in whole[-1].rglob("*") if path.is_file()) if whole else 0
    room = f"{free / 1e6:.1f} MB were free there" + (f", and a checkpoint takes {size / 1e6:.1f} MB" if size else "")
    advice = (
        "Free some room there, or keep fewer checkpoints (save_total_limit)"
        if number in {*_NO_ROOM, errno.EIO}  # torch tells no reason, and a full disk or a quota is the usual one
        else "See to it that output_dir may be written to"
    )
    return (
        f"{name} could not be written to {run}: {os.strerror(number)} ({room}). What was written of it is removed; "
        f"{last}. {advice}; then go on with resume_from_checkpoint=True"
    )
