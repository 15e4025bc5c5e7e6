"""A teacher cache's folder: one folder for each teacher, with a teacher.json that says who it is; refused where unfit.

CACHE/<key of the teacher>/teacher.json
CACHE/<key of the teacher>/<random name>.safetensors   the rows, see `shards`
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hfdistill.teacher_cache.shards import UNFINISHED, write_aside

logger = logging.getLogger(__name__)

VERSION = 1
"""Of the format; also of what the keys are made of."""
DAMAGED = ".damaged"
"""What is added to the name of a file that is not read any more."""

_ABOUT = "teacher.json"
_KEY = re.compile(r"[0-9a-f]{16,128}")
_FORGOTTEN = 3600.0  # seconds: nobody writes a shard for an hour, so who began it is dead
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def open_folder(
    folder: str | Path, key: str, about: Mapping[str, Any] | None, writes: bool
) -> tuple[Path, dict[str, Any]]:
    """One teacher's folder, made where it is not there, and what its teacher.json says.

    Args:
        folder: of the cache.
        key: of the teacher.
        about: what teacher.json shall say; None: what it says already.
        writes: whether files may be added.

    Raises:
        OSError: it cannot be written to.
        ValueError: it is no cache, one of another format, or `writes` is false and there is nothing to read.
    """
    cache = Path(folder).expanduser()
    if not _KEY.fullmatch(key):
        raise ValueError(f"expected the key of a teacher, hexadecimal digits as teacher_key gives them, got {key!r}")
    _check_cache(cache)
    home = cache / key
    if not writes:
        said = _said(home)
        if said is None:
            raise ValueError(
                f"{cache} holds nothing of this teacher ({key[:12]}...), but of {len(_homes(cache))} others. Its "
                "weights, its configuration or the order of its labels are others than when the cache was filled; "
                "fill it with this teacher (teacher_cache=...)."
            )
        return home, said
    with _explained_opening(cache):
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass  # to know now, and not after an hour's work, that it may be written to
        _clear(home)
        said, given = _said(home), None if about is None else json.loads(json.dumps(about))
        if said is None or (given is not None and said != given):
            said = given or {}
            content = {"format": "hfdistill teacher cache", "version": VERSION, "about": said, "checksum": _sum(said)}
            write_aside(home, _ABOUT, json.dumps(content, indent=1).encode())
    return home, said


def stored_teachers(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Key of each teacher in a cache -> what was said of it when it was opened (`about`).

    Raises:
        OSError: there is no such folder.
        ValueError: the folder is no cache, or one of another format.
    """
    cache = Path(folder).expanduser()
    _check_cache(cache)
    if not cache.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"expected a teacher cache, found no folder {cache}. Fill one first (teacher_cache=...)"
        )
    found = {home.name: _said(home) for home in _homes(cache)}
    return {key: said for key, said in found.items() if said is not None}


def check_space(folder: str | Path, needed: int) -> None:
    """Refuse to begin what does not fit.

    Args:
        folder: of the cache; it need not be there yet.
        needed: bytes that are going to be written.

    Raises:
        OSError: (ENOSPC) fewer bytes are free.
    """
    place = Path(folder).expanduser().absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the teacher cache would take {_size(needed)} in {folder}, where {_size(free)} are free. {_ADVICE}",
        )


@contextmanager
def explained_write(home: Path, needed: int, kept: int) -> Iterator[None]:
    """Within this, an error of writing rows says what is kept, what is needed and what to do.

    Args:
        home: the teacher's folder.
        needed: bytes that were to be written.
        kept: rows that are on the disk.

    Raises:
        OSError: of the same kind.
    """
    try:
        yield
    except OSError as error:
        free = _size(shutil.disk_usage(home).free) if home.is_dir() else "none"
        advice = _ADVICE if error.errno in _NO_ROOM else "See to it that the folder is there and may be written to."
        raise OSError(
            error.errno or errno.EIO,
            f"{_size(needed)} of what the teacher shows could not be written to {home}: {error.strerror or error} "
            f"({free} free there). The cache is whole: its {kept} rows are kept and stay in use, and nothing is left "
            f"of what was being written. {advice} Then run it again, which goes on from there.",
        ) from error


def set_aside(path: Path, reason: object, writes: bool) -> None:
    """Give a file that must not be read another name, and tell so.

    Args:
        path: the file.
        reason: what is wrong with it.
        writes: whether it may be renamed; otherwise it is told only.
    """
    aside = path.with_name(path.name + DAMAGED)
    logger.warning(
        "%s of the teacher cache is damaged (%s). It is not read%s; what it held is asked of the teacher again.",
        path,
        reason,
        f", and kept as {aside.name}" if writes else "",
    )
    if writes:
        try:
            path.replace(aside)
        except FileNotFoundError:  # another process has done it
            pass
        except OSError as error:
            logger.warning("%s could not be renamed (%s); remove it.", path, error.strerror)


_ADVICE = (
    "Free some room, keep what is stored in less (teacher_cache_dtype='float16'), or put it elsewhere "
    "(teacher_cache=...)."
)


def _check_cache(cache: Path) -> None:
    if cache.exists() and not cache.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"teacher_cache={str(cache)!r} is a file. Give it a folder")
    names = sorted(path.name for path in cache.iterdir()) if cache.is_dir() else []
    others = [name for name in names if not name.startswith(".") and not _KEY.fullmatch(name)]
    if others and len(others) == len([name for name in names if not name.startswith(".")]):
        raise ValueError(
            f"expected a teacher cache in {cache}, or an empty folder, found {', '.join(others[:4])}. A cache is "
            "filled and emptied as a whole: give it a folder of its own (teacher_cache=...)."
        )


def _homes(cache: Path) -> list[Path]:
    found = cache.iterdir() if cache.is_dir() else iter(())
    return sorted(path for path in found if _KEY.fullmatch(path.name) and path.is_dir())


def _said(home: Path) -> dict[str, Any] | None:
    """What teacher.json says of the teacher; None where there is none, or not a whole one."""
    try:
        content = json.loads((home / _ABOUT).read_text(encoding="utf-8"))
        version, about, checksum = content["version"], content["about"], content["checksum"]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        logger.warning("%s is damaged and is not read; it is written again when the cache is filled.", home / _ABOUT)
        return None
    if version != VERSION:
        raise ValueError(
            f"{home} was written in version {version} of the format, and this hfdistill reads version {VERSION}: what "
            "is stored there would be found under other keys. Give another folder (teacher_cache=...), or remove it."
        )
    if not isinstance(about, dict) or checksum != _sum(about):
        logger.warning("%s is damaged and is not read; it is written again when the cache is filled.", home / _ABOUT)
        return None
    return about


def _sum(about: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _clear(home: Path) -> None:
    """Remove what processes that are dead have begun."""
    for path in home.glob(f"{UNFINISHED}*"):
        try:
            if time.time() - path.stat().st_mtime > _FORGOTTEN:
                path.unlink()
        except FileNotFoundError:  # finished, or removed by another process
            continue


@contextmanager
def _explained_opening(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        number = error.errno or errno.EIO
        advice = (
            _ADVICE
            if number in _NO_ROOM
            else "Give a folder that may be written to (teacher_cache=...), or only read a cache that is complete "
            "(CachedTeacher)."
        )
        raise OSError(
            number,
            f"the teacher cache {cache} cannot be written to: {error.strerror or os.strerror(number)}. {advice}",
        ) from error


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
