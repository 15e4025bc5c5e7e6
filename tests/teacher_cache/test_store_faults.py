"""What may happen to a store: damaged files, a full disk, folders that are none."""

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from stored_rows import LAYOUT, TEACHER, is_row, kept, key_of, keys_of, row_of, store_in

from hfdistill.teacher_cache import folders
from hfdistill.teacher_cache.store import Layout, Store, stored_teachers


def shards(folder: Path) -> list[Path]:
    """The files of rows of the teacher of these tests."""
    return sorted((folder / TEACHER).glob("*.safetensors"))


def hidden(folder: Path) -> list[str]:
    """Files that a process began and did not finish."""
    return [path.name for path in (folder / TEACHER).iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("eighths", range(8))
def test_a_truncated_file_is_set_aside_and_filled_again(
    eighths: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its rows are missing, those of the other file are not, and the next run does not stumble over it."""
    kept(kept(store_in(tmp_path), range(5)), range(5, 10))
    cut = shards(tmp_path)[0]
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * eighths // 8])
    with caplog.at_level(logging.WARNING):
        store = store_in(tmp_path)
    assert cut.name in caplog.text
    assert "asked of the teacher again" in caplog.text
    assert (len(store), shards(tmp_path), Path(f"{cut}.damaged").is_file()) == (5, shards(tmp_path)[:1], True)
    kept(store, range(10))
    caplog.clear()
    again = store_in(tmp_path)
    assert all(is_row(row, number) for number, row in enumerate(again.read(keys_of(range(10)))))
    assert not caplog.text


def flip(path: Path, number: int) -> None:
    """Change a byte of the logits of a row."""
    content = bytearray(path.read_bytes())
    content[content.index(row_of(number)["logits"].numpy().tobytes()) + 5] ^= 4
    path.write_bytes(content)


def holding(folder: Path, number: int) -> Path:
    """The first file that holds the logits of a row."""
    told = row_of(number)["logits"].numpy().tobytes()
    return next(path for path in shards(folder) if told in path.read_bytes())


def test_a_flipped_byte_is_found_during_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is found when the row is read, and that row is never given out."""
    store = kept(kept(store_in(tmp_path), range(5)), range(5, 10))
    flip(holding(tmp_path, 3), 3)  # what is mapped shows the file as it is now
    store = store_in(tmp_path)
    with caplog.at_level(logging.WARNING):
        rows = store.read(keys_of([7, 4, 3, 8, 1]))
    assert [row is None for row in rows] == [False, False, True, False, True]
    assert is_row(rows[0], 7)
    assert is_row(rows[1], 4)
    assert caplog.text.count("is damaged") == 1
    assert len(list((tmp_path / TEACHER).glob("*.damaged"))) == 1
    assert store.missing(keys_of(range(10))) == [0, 1, 2, 3, 4]
    kept(store, range(10))
    assert all(is_row(row, number) for number, row in enumerate(store_in(tmp_path).read(keys_of(range(10)))))


def test_a_damaged_row_is_found_where_it_is_whole(tmp_path: Path) -> None:
    """Two processes that raced have written it twice, and one of both is enough."""
    one, other = store_in(tmp_path), store_in(tmp_path)
    for store in (one, other):
        store.append(keys_of(range(4)), [row_of(number) for number in range(4)])
    one.flush()
    other.flush()
    assert len(shards(tmp_path)) == 2
    flip(shards(tmp_path)[0], 2)
    store = store_in(tmp_path)
    assert is_row(store.read([key_of(2)])[0], 2)
    assert (len(store), len(shards(tmp_path))) == (4, 1)


def test_a_damaged_half_makes_the_row_missing(tmp_path: Path) -> None:
    """A row of two files is whole only if both are, and the half that is lost is asked for again."""
    first = store_in(tmp_path, Layout(("logits",)))
    first.append(keys_of(range(3)), [{"logits": row_of(number)["logits"]} for number in range(3)])
    first.flush()
    kept(store_in(tmp_path), range(3))
    flip(holding(tmp_path, 1), 1)
    store = store_in(tmp_path)
    assert store.missing(keys_of(range(3))) == []
    assert store.read([key_of(1)]) == [None]
    assert store.missing(keys_of(range(3))) == [0, 1, 2]
    kept(store, range(3))
    assert all(is_row(row, number) for number, row in enumerate(store_in(tmp_path).read(keys_of(range(3)))))


def test_a_reader_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A cache that others own is not tidied by who only reads it."""
    kept(store_in(tmp_path), range(3))
    flip(holding(tmp_path, 1), 1)
    before = sorted((tmp_path / TEACHER).iterdir())
    store = store_in(tmp_path, writes=False)
    with caplog.at_level(logging.WARNING):
        assert store.read(keys_of([1, 0])) == [None, None]
    assert "is damaged" in caplog.text
    assert sorted((tmp_path / TEACHER).iterdir()) == before


def test_another_models_weights_are_set_aside(tmp_path: Path) -> None:
    """A file that was put here by hand is not rows."""
    store = kept(store_in(tmp_path), range(3))
    (store.folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert len(store_in(tmp_path)) == 3
    assert (store.folder / "model.safetensors.damaged").is_file()


class Disk:
    """Stands in for a disk that becomes full in the middle of a file.

    Args:
        room: bytes that still fit.
        fails: "write" or "fsync", where the system tells so.
    """

    def __init__(self, room: int, fails: str) -> None:
        self.room = room
        self.fails = fails
        self.really_write = Path.write_bytes
        self.really_sync = os.fsync

    def write(self, path: Path, content: bytes) -> int:
        """Write what fits."""
        self.really_write(path, content[: self.room])
        if self.fails == "write" and len(content) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(content)

    def sync(self, handle: int) -> None:
        """Tell what is lost, as file systems do that write later."""
        if self.fails == "fsync":
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        self.really_sync(handle)


@pytest.mark.parametrize("room", [0, 1, 700, 1500])
@pytest.mark.parametrize("fails", ["write", "fsync"])
def test_a_full_disk_leaves_the_cache_valid(
    fails: str, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written is readable, what was not is still in memory, and the error says what to do."""
    store = kept(store_in(tmp_path), range(5))
    disk = Disk(room, fails)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda path, content: disk.write(path, content))
        patch.setattr(os, "fsync", disk.sync)
        with pytest.raises(OSError, match="could not be written") as caught:
            kept(store, range(5, 60))
    assert caught.value.errno in {errno.ENOSPC, errno.EDQUOT}
    for told in ("MB of what the teacher shows", "free there", "5 rows are kept", "teacher_cache_dtype='float16'"):
        assert told in str(caught.value)
    assert (hidden(tmp_path), len(shards(tmp_path)), len(store_in(tmp_path))) == ([], 1, 5)
    assert is_row(store.read([key_of(40)])[0], 40)
    store.flush()
    again = store_in(tmp_path)
    assert all(is_row(row, number) for number, row in enumerate(again.read(keys_of(range(60)))))


def test_an_interrupt_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes in the middle of a file, too."""
    store = kept(store_in(tmp_path), range(5))

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kept(store, range(5, 9))
    assert (hidden(tmp_path), len(store_in(tmp_path))) == ([], 5)
    store.flush()
    assert len(store_in(tmp_path)) == 9


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """teacher_cache= is easily given a file's name."""
    (tmp_path / "file").write_text("")
    for writes in (True, False):
        with pytest.raises(NotADirectoryError, match=r"is a file\. Give it a folder"):
            store_in(tmp_path / "file", writes=writes)
    with pytest.raises(OSError, match="cannot be written to"):
        store_in(tmp_path / "file" / "below")


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    """A cache is removed as a whole by who wants the room back."""
    (tmp_path / "thesis.tex").write_text("")
    for opened in (lambda: store_in(tmp_path), lambda: stored_teachers(tmp_path)):
        with pytest.raises(ValueError, match=r"expected a teacher cache in .* found thesis.tex"):
            opened()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_hidden_files_are_nobodys(tmp_path: Path) -> None:
    """File managers leave them everywhere."""
    (tmp_path / ".DS_Store").write_text("")
    kept(store_in(tmp_path), [1])
    assert len(store_in(tmp_path)) == 1


def test_reading_needs_something_to_read(tmp_path: Path) -> None:
    """A run without its teacher must hear at once that the cache is another teacher's."""
    kept(Store.open(tmp_path, "ab" * 32, LAYOUT), [1])
    with pytest.raises(ValueError, match=r"nothing of this teacher \(c0ffeec0ffee...\), but of 1 others"):
        store_in(tmp_path, writes=False)
    with pytest.raises(FileNotFoundError, match="Fill one first"):
        stored_teachers(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected the key of a teacher"):
        Store.open(tmp_path, "../elsewhere", LAYOUT)


def test_a_folder_that_may_not_be_written_to_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who runs these tests as root may write everywhere, so the system's answer is played."""
    kept(store_in(tmp_path), [1])

    def denied(**place: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(folders.tempfile, "TemporaryFile", denied)
    with pytest.raises(PermissionError, match=r"cannot be written to: Permission denied.*may be written to"):
        store_in(tmp_path)
    assert is_row(store_in(tmp_path, writes=False).read([key_of(1)])[0], 1)


def test_another_format_is_refused(tmp_path: Path) -> None:
    """What was found under other keys would all be missing, or worse."""
    path = kept(store_in(tmp_path), [1]).folder / "teacher.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    for opened in (lambda: store_in(tmp_path), lambda: stored_teachers(tmp_path)):
        with pytest.raises(ValueError, match="version 2 of the format, and this hfdistill reads version 1"):
            opened()


@pytest.mark.parametrize("damage", ["{", "[]", '{"version": 1}', None])
def test_a_damaged_teacher_json_is_written_again(
    damage: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The rows are whole, and only what was said of the teacher must be said again."""
    store = Store.open(tmp_path, TEACHER, LAYOUT, about={"depth": 12})
    kept(store, [1])
    path = store.folder / "teacher.json"
    path.write_text(path.read_text().replace("12", "13") if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert stored_teachers(tmp_path) == {}
    assert "teacher.json is damaged" in caplog.text
    assert len(Store.open(tmp_path, TEACHER, LAYOUT, about={"depth": 12})) == 1
    assert stored_teachers(tmp_path) == {TEACHER: {"depth": 12}}
