"""One teacher's rows on disk: asked for by what the rows hold, filled by any number of processes at once.

Whether a row is there is decided by the shards themselves, whose keys are read when a store is opened: no index can be
out of date. Runs with other objectives keep other kinds of the same rows in shards of their own, and a row is there
for a layout when all of its kinds are, in however many shards.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, get_args

import torch
from torch import Tensor

from hfdistill.teacher_cache.folders import check_space, explained_write, open_folder, set_aside, stored_teachers
from hfdistill.teacher_cache.shards import (
    KEY_BYTES,
    OWN_PREFIX,
    SUFFIX,
    DamagedShardError,
    Row,
    Shard,
    flat,
    write_shard,
)
from hfdistill.teacher_precision import CachePrecision

__all__ = ["Layout", "Store", "check_space", "stored_teachers"]


SHARD_BYTES = 64 * 2**20
"""How much is collected before it is written."""

_GRAIN = 2 * 10**9  # nanoseconds; the coarsest clock by which a file system tells when a folder changed
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_Place: TypeAlias = tuple[Shard, int]


@dataclass(frozen=True)
class Layout:
    """What is kept of each row, and how precisely.

    Args:
        kinds: names of a row's tensors, such as "logits", "hidden_states/3", "pooled_states/6/cls". Every row has all
            of them; what a row has not is kept as an empty tensor.
        dtype: of the floating-point ones; "auto" keeps each as it is given. Rows kept in another are misses.

    Raises:
        ValueError: no kind, one twice, or one whose name begins with "."; an unknown dtype.
    """

    kinds: tuple[str, ...]
    dtype: CachePrecision = "auto"

    def __post_init__(self) -> None:
        named = all(kind and not kind.startswith(OWN_PREFIX) for kind in self.kinds)
        if not self.kinds or not named or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(
                f"kinds must be different names, at least one, none of which begins with {OWN_PREFIX!r}, got "
                f"{self.kinds}. They name what is kept of each row, such as 'logits'."
            )
        if self.dtype not in get_args(CachePrecision):
            raise ValueError(f"dtype must be one of {', '.join(get_args(CachePrecision))}, got {self.dtype!r}")


class Store:
    """What one teacher shows of each row; made by `open`. May be pickled: a data loader's worker opens it again.

    Args:
        folder: of the teacher.
        layout: what is asked for.
        about: what teacher.json says of the teacher.
        writes: whether rows may be added.

    Attributes:
        folder: the same.
        layout: the same.
        about: the same.
        writes: the same.
    """

    def __init__(self, folder: Path, layout: Layout, about: Mapping[str, Any], writes: bool = True) -> None:
        self.folder = folder
        self.layout = layout
        self.about = about
        self.writes = writes
        self._names: set[str] = set()  # of files that were looked at, also of those that are of no use here
        self._changed: int | None = None
        self._shards: list[Shard] = []
        self._whole: dict[bytes, _Place] = {}
        self._parts: dict[bytes, list[_Place]] = {}  # of rows whose kinds lie in several shards
        self._unwritten: dict[bytes, dict[str, Tensor]] = {}
        self._bytes = 0  # of the unwritten ones
        self.refresh()

    @classmethod
    def open(
        cls,
        folder: str | Path,
        key: str,
        layout: Layout,
        about: Mapping[str, Any] | None = None,
        writes: bool = True,
    ) -> Store:
        """Open what is kept of a teacher, or begin it.

        Args:
            folder: of the cache; made if it is not there.
            key: of the teacher, see `teacher_key`.
            layout: what is asked for.
            about: what teacher.json shall say of the teacher (its anatomy, ...), anything of JSON; None: what it says.
            writes: whether rows may be added; a cache that is complete can be read from where nothing can be written.

        Raises:
            OSError: the folder cannot be written to (PermissionError, NotADirectoryError, ...).
            ValueError: the folder holds other things, or a cache of another format; `writes` is false and there is
                nothing to read.
        """
        home, said = open_folder(folder, key, about, writes)
        return cls(home, layout, said, writes)

    def __getstate__(self) -> tuple[Path, Layout, Mapping[str, Any], bool]:
        """Without the unwritten rows, which are for the process to write that was given them."""
        return self.folder, self.layout, self.about, self.writes

    def __setstate__(self, state: tuple[Path, Layout, Mapping[str, Any], bool]) -> None:
        Store.__init__(self, *state)

    def __len__(self) -> int:
        """Number of rows that are there for this layout, unwritten ones included."""
        others = (self._parts.keys() | self._unwritten.keys()) - self._whole.keys()
        return len(self._whole) + sum(not self._lacking(key) for key in others)

    def size(self) -> int:
        """Bytes that this teacher's files take, in all layouts."""
        with os.scandir(self.folder) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.name.endswith(SUFFIX))

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Positions of the keys whose rows are not there, neither on disk nor among those to be written.

        Looks for what other processes wrote before it calls a row missing.
        """
        positions = [at for at, key in enumerate(keys) if key not in self._whole and self._lacking(key)]
        if positions and self.refresh():
            return [at for at in positions if self._lacking(keys[at])]
        return positions

    def read(self, keys: Sequence[bytes]) -> list[dict[str, Tensor] | None]:
        """Each row's tensors by kind, of the layout's kinds alone; None where a row is not there, or is damaged.

        The tensors show the file itself: copy before changing one. Rows appended but not yet written are found, too.
        A damaged file is set aside with a warning; then its other rows are missing, too.
        """
        rows = [self._row(key) for key in keys]
        if None in rows and self.refresh():
            return [self._row(key) if row is None else row for key, row in zip(keys, rows, strict=True)]
        return rows

    def append(self, keys: Sequence[bytes], rows: Sequence[Row]) -> None:
        """Keep rows; they are copied, from whatever device, and written when about 64 MB have come together.

        Rows that are there already are not kept twice, and of rows that are there in part the rest is.

        Args:
            keys: of `row_keys`.
            rows: each of exactly the layout's kinds.

        Raises:
            ValueError: other kinds than the layout's; a finite value that the dtype cannot hold.
            OSError: there is no room; nothing that was written before is lost.
        """
        given: dict[tuple[str, torch.dtype], dict[bytes, Tensor]] = {}
        for key, row in zip(keys, rows, strict=True):
            self._check(key, row)
            for kind in self._lacking(key):
                given.setdefault((kind, row[kind].dtype), {})[key] = row[kind]
        kept = [(kind, self._kept(kind, list(tensors.values())), tensors) for (kind, _), tensors in given.items()]
        for kind, values, tensors in kept:  # all of them or, after an error, none
            for key, value in zip(tensors, values, strict=True):
                self._unwritten.setdefault(key, {})[kind] = value
                self._bytes += value.nbytes
        if self._bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was appended. After an error it is still there, and the next flush tries again.

        Raises:
            OSError: there is no room; nothing that was written before is lost.
        """
        alike: dict[tuple[object, ...], dict[bytes, dict[str, Tensor]]] = {}
        for key, row in self._unwritten.items():
            form = tuple((kind, value.dtype, value.dim()) for kind, value in sorted(row.items()))
            alike.setdefault(form, {})[key] = row
        for rows in alike.values():
            with explained_write(self.folder, self._bytes, len(self._whole)):
                path = write_shard(self.folder, rows, self.layout.dtype)
            self._add(path.name)
            for key, row in rows.items():
                del self._unwritten[key]
                self._bytes -= sum(value.nbytes for value in row.values())

    def refresh(self) -> bool:
        """Look for files that other processes wrote; whether there were any. Cheap where there are none."""
        try:
            changed = self.folder.stat().st_mtime_ns
            if changed == self._changed:
                return False
            now = time.time_ns()
            new = sorted(set(_shard_names(self.folder)) - self._names)
        except FileNotFoundError:  # removed under us: what is mapped can still be read
            return False
        # a file that comes within one tick of the clock does not change the time: look again until it has gone on
        self._changed = changed if now - changed > _GRAIN else None
        for name in new:
            self._add(name)
        return bool(new)

    def _row(self, key: bytes) -> dict[str, Tensor] | None:
        if (place := self._whole.get(key)) is not None:
            row = self._part(place, self.layout.kinds)
            return self._row(key) if row is None else row  # damaged here, it may be whole elsewhere
        found = dict(self._unwritten.get(key, ()))
        for place in self._parts.get(key, ()):
            part = self._part(place, [kind for kind in place[0].kinds if kind in self.layout.kinds])
            if part is None:
                return self._row(key)
            found |= part
        return {kind: found[kind] for kind in self.layout.kinds} if len(found) == len(self.layout.kinds) else None

    def _part(self, place: _Place, kinds: Sequence[str]) -> dict[str, Tensor] | None:
        """What a shard has of a row; None where it is damaged, and then it is not asked again."""
        shard, row = place
        try:
            return shard.read(row, kinds)
        except DamagedShardError as error:
            self._drop(shard, error)
            return None

    def _lacking(self, key: bytes) -> list[str]:
        """Those kinds of a row that are not there."""
        if key in self._whole:
            return []
        found = set(self._unwritten.get(key, ()))
        found.update(*(shard.kinds for shard, _ in self._parts.get(key, ())))
        return [kind for kind in self.layout.kinds if kind not in found]

    def _check(self, key: bytes, row: Row) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a row's key has {KEY_BYTES} bytes, as row_keys gives it, got {len(key)}: {key!r}")
        if row.keys() != set(self.layout.kinds):
            raise ValueError(
                f"expected of each row {sorted(self.layout.kinds)}, got {sorted(row)}. A row that lacks a kind could "
                "never be found again; keep an empty tensor where there is nothing."
            )

    def _kept(self, kind: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies of tensors of one dtype, on the CPU and in the layout's dtype."""
        given = flat(tensors).detach()
        values = given
        if given.is_floating_point() and self.layout.dtype != "auto":
            values = given.to(_DTYPES[self.layout.dtype])
            if (lost := values.isinf() & ~given.isinf()).any():
                raise ValueError(
                    f"{kind} has the value {given[lost][0].item():.6g}, and {self.layout.dtype} holds no more than "
                    f"{torch.finfo(values.dtype).max:.6g}: it would be read back as infinite. Keep it in more "
                    "(teacher_cache_dtype='bfloat16', or 'float32')."
                )
        values, shape = values.cpu(), tensors[0].shape
        if all(tensor.shape == shape for tensor in tensors):
            return list(values.view(len(tensors), *shape).unbind())
        parts = torch.split(values, [tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def _add(self, name: str) -> None:
        self._names.add(name)
        path = self.folder / name
        try:
            shard = Shard(path)
        except FileNotFoundError:  # another process has set it aside
            return
        except DamagedShardError as error:
            set_aside(path, error, self.writes)
            return
        if shard.precision == self.layout.dtype and not set(shard.kinds).isdisjoint(self.layout.kinds):
            self._shards.append(shard)
            self._index(shard)

    def _index(self, shard: Shard) -> None:
        if set(shard.kinds).issuperset(self.layout.kinds):
            for at, key in enumerate(shard.keys):
                self._whole.setdefault(key, (shard, at))  # racing processes may have written a row twice
        else:
            for at, key in enumerate(shard.keys):
                self._parts.setdefault(key, []).append((shard, at))

    def _drop(self, damaged: Shard, reason: DamagedShardError) -> None:
        set_aside(damaged.path, reason, self.writes)
        self._shards = [shard for shard in self._shards if shard is not damaged]
        self._whole.clear()
        self._parts.clear()
        for shard in self._shards:
            self._index(shard)


def _shard_names(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if entry.name.endswith(SUFFIX))
