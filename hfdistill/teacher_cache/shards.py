"""Files of a teacher cache: many rows each, complete or absent, every value with a checksum; `store` keeps them.

A shard is a safetensors file that never changes. Its rows lie one behind another, kind by kind:

    KIND          (sum of the rows' elements,)  the values of all rows
    .shapes/KIND  (R, axes), or (1, axes) where all rows have one shape
    .keys         (R, 16)  under what each row is found, see `keys.row_keys`
    .checksums    (R, kinds in the order of their names)  CRC-32 of key, kind, dtype, shape and values
"""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

SUFFIX = ".safetensors"
UNFINISHED = ".unfinished-"
"""What the name of a file begins with while it is written."""

KEY_BYTES = 16
OWN_PREFIX = "."
"""What the names of tensors begin with that are no kind of knowledge."""

_KEYS, _CHECKSUMS, _SHAPES = ".keys", ".checksums", ".shapes/"
_FORMAT = {"format": "hfdistill teacher cache", "version": "1"}
_PRECISION = "dtype"

Row = Mapping[str, Tensor]
"""What is kept of one row: kind -> tensor."""


class DamagedShardError(ValueError):
    """A file that is not, or is no longer, what `write_shard` wrote."""


class _Column:
    """One kind of knowledge of all rows of a shard; each row is checked when it is first read.

    Args:
        kind: its name.
        values: (elements,), all rows one behind another.
        shapes: (R, axes) or (1, axes) int64.
        keys: (R, 16) uint8.
        checksums: (R,) int64.
    """

    def __init__(
        self, kind: str, values: Tensor, shapes: npt.NDArray[np.int64], keys: bytes, checksums: npt.NDArray[np.int64]
    ) -> None:
        rows = len(checksums)
        sizes = shapes.prod(axis=1)  # of no axes: 1
        whole = int(sizes.sum()) * (1 if len(sizes) == rows else rows)
        if values.dim() != 1 or len(shapes) not in {1, rows} or (shapes < 0).any() or whole != values.numel():
            raise DamagedShardError(f"the values of {kind!r} are not as many as their shapes say")
        self.kind = kind
        self._values = values
        self._base = int(values.storage_offset())
        self._bytes = values.view(torch.uint8).numpy().data
        self._shape: tuple[int, ...] | None = None
        if len(shapes) == 1:
            self._shape, self._strides = _laid_out(shapes[0].tolist())
            self._size = int(sizes[0])
        else:
            self._shapes = shapes
            self._starts = np.concatenate(([0], sizes.cumsum()))
        self._keys = keys
        self._checksums = checksums
        self._sound = bytearray(rows)  # 1: checked

    def read(self, row: int) -> Tensor:
        """The tensor of a row, which shows the file itself.

        Raises:
            DamagedShardError: it is not what was written.
        """
        if self._shape is not None:
            shape, strides, start = self._shape, self._strides, row * self._size
        else:
            shape, strides = _laid_out(self._shapes[row].tolist())
            start = int(self._starts[row])
        if not self._sound[row]:
            self._check(row, shape, start)
        return self._values.as_strided(shape, strides, self._base + start)  # one call: half the time of slice and view

    def _check(self, row: int, shape: tuple[int, ...], start: int) -> None:
        width = self._values.element_size()
        stop = int(self._starts[row + 1]) if self._shape is None else start + self._size
        key = self._keys[row * KEY_BYTES : (row + 1) * KEY_BYTES]
        found = _checksum(key, self.kind, self._values.dtype, shape, self._bytes[start * width : stop * width])
        if found != self._checksums[row]:
            raise DamagedShardError(f"row {row} of {self.kind!r} has another checksum than when it was written")
        self._sound[row] = 1


class Shard:
    """A file of rows, mapped into memory: nothing of it is read before it is asked for, apart from the keys.

    Args:
        path: the file.

    Attributes:
        path: the file.
        precision: the `dtype` of the layout that it was written for.
        keys: of the rows, in their order.
        kinds: what each of its rows has.

    Raises:
        DamagedShardError: it is no shard, or not a whole one.
        OSError: it cannot be read at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except SafetensorError as error:
            raise DamagedShardError(str(error)) from error
        if any(metadata.get(name) != value for name, value in _FORMAT.items()):
            raise DamagedShardError(f"it is not of this format, its header says {metadata}")
        self.precision = metadata.get(_PRECISION, "")
        self.kinds = tuple(sorted(name for name in tensors if not name.startswith(OWN_PREFIX)))
        keys, checksums = tensors.get(_KEYS), tensors.get(_CHECKSUMS)
        if keys is None or keys.shape[1:] != (KEY_BYTES,) or keys.dtype != torch.uint8:
            raise DamagedShardError("it has no keys")
        if checksums is None or checksums.shape != (len(keys), len(self.kinds)) or checksums.dtype != torch.int64:
            raise DamagedShardError("it has not one checksum for each value")
        plain = keys.numpy().tobytes()
        self.keys = [plain[start : start + KEY_BYTES] for start in range(0, len(plain), KEY_BYTES)]
        self._columns = {}
        for at, kind in enumerate(self.kinds):
            shapes = tensors.get(_SHAPES + kind)
            if shapes is None or shapes.dim() != 2 or shapes.dtype != torch.int64:
                raise DamagedShardError(f"it has no shapes of {kind!r}")
            self._columns[kind] = _Column(kind, tensors[kind], shapes.numpy(), plain, checksums[:, at].numpy())

    def read(self, row: int, kinds: Sequence[str]) -> dict[str, Tensor]:
        """Some kinds of a row, as the file itself shows them.

        Raises:
            DamagedShardError: one of them is not what was written.
        """
        columns = self._columns
        return {kind: columns[kind].read(row) for kind in kinds}


def write_shard(folder: Path, rows: Mapping[bytes, Row], precision: str) -> Path:
    """Write rows into a file of its own: under a name that nobody else uses, complete or not at all.

    Args:
        folder: where it goes.
        rows: by key; all of the same kinds, each kind of one dtype and number of axes, on the CPU.
        precision: the `dtype` of the layout.

    Raises:
        OSError: it could not be written.
    """
    kinds = sorted(next(iter(rows.values())))
    checksums = np.empty((len(rows), len(kinds)), dtype=np.int64)
    tensors = {}
    for at, kind in enumerate(kinds):
        parts = [row[kind] for row in rows.values()]
        values = flat(parts)
        tensors[kind] = values
        shapes = [tuple(part.shape) for part in parts]
        kept = shapes[:1] if len(set(shapes)) == 1 else shapes
        tensors[_SHAPES + kind] = torch.tensor(kept, dtype=torch.int64).reshape(len(kept), -1)
        content, start = values.view(torch.uint8).numpy().data, 0
        for row, (key, part) in enumerate(zip(rows, parts, strict=True)):
            stop = start + part.numel() * values.element_size()
            checksums[row, at] = _checksum(key, kind, values.dtype, shapes[row], content[start:stop])
            start = stop
    keys = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, KEY_BYTES).copy()
    tensors |= {_KEYS: torch.from_numpy(keys), _CHECKSUMS: torch.from_numpy(checksums)}
    # not save_file, which writes under names of its own, that would stay when a process is killed, for its user alone
    file = save(tensors, {**_FORMAT, _PRECISION: precision})
    return write_aside(folder, f"{secrets.token_hex(16)}{SUFFIX}", file)  # not of `random`, which runs seed alike


def write_aside(folder: Path, name: str, content: bytes) -> Path:
    """Write a file that is complete or absent, in the place of one of this name.

    Raises:
        OSError: it could not be written; then nothing of it is left.
    """
    unfinished, path = folder / f"{UNFINISHED}{secrets.token_hex(8)}", folder / name
    try:
        unfinished.write_bytes(content)
        _sync(unfinished)  # a power cut must not leave the name without the content
        unfinished.replace(path)
        with suppress(OSError):  # not every file system can do this with a folder, and the file is there
            _sync(folder)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """The elements of tensors of one dtype, one behind another: a copy."""
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(list(tensors)).reshape(-1)  # without a call for each: these take the time
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _laid_out(shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape, and the strides of a contiguous tensor of it."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(shape), tuple(reversed(strides))


def _checksum(key: bytes, kind: str, dtype: torch.dtype, shape: tuple[int, ...], values: memoryview) -> int:
    """Of a value and of all that says what it is, so that no other byte of the file can make it stand for another."""
    return zlib.crc32(values, zlib.crc32(key, _meaning(kind, dtype, shape)))


@lru_cache(maxsize=4096)
def _meaning(kind: str, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return zlib.crc32(f"{kind} {dtype} {shape}".encode())
