"""What other processes, and the system, may do to a store: fill it too, die while writing, run out of disk."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stored_rows import TEACHER, fill, is_row, keys_of, store_in

FULL_DISK = """
import errno, subprocess, sys
from pathlib import Path
from stored_rows import is_row, keys_of, kept, row_of, store_in

folder = Path(sys.argv[1])
store = kept(store_in(folder), range(100))
failed = 0
for start in range(100, 100000, 1000):
    try:
        kept(store, range(start, start + 1000))
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        assert "No space left" in str(error) and "rows are kept" in str(error), error
        failed += 1
        break
assert failed
assert sorted(path.suffix for path in store.folder.iterdir() if path.name.startswith(".")) == []
again = store_in(folder, writes=False)
rows = again.read(keys_of(range(start)))
assert all(is_row(row, number) for number, row in enumerate(rows)), "what was written before is not there"
assert store.missing(keys_of(range(start + 1000))) == [], "what could not be written is lost"
subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
try:
    store_in(folder)
except OSError as error:
    assert error.errno == errno.EROFS and "may be written to" in str(error), error
else:
    raise SystemExit("a read-only folder was opened for writing")
assert is_row(store_in(folder, writes=False).read(keys_of([5]))[0], 5)
print("all of it")
"""
WRITER = """
import itertools, sys
from stored_rows import kept, store_in

store = store_in(sys.argv[1])
for start in itertools.count(0, 200):
    kept(store, range(start, start + 200))
    print(start + 200, flush=True)
"""


def shards(folder: Path) -> list[Path]:
    """The files of rows of the teacher of these tests."""
    return sorted((folder / TEACHER).glob("*.safetensors"))


def hidden(folder: Path) -> list[str]:
    """Files that a process began and did not finish."""
    return [path.name for path in (folder / TEACHER).iterdir() if path.name.startswith(".")]


def environment() -> dict[str, str]:
    """In which a process of its own finds the package and the tests' modules."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """The system itself decides where the write ends; and then the disk is read-only besides."""
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mounted = f"mount -t tmpfs -o size=1m none {tmp_path} && "
    try:
        able = subprocess.run([*alone, f"{mounted} true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        able = False
    if not able:
        pytest.skip("needs to mount a small tmpfs in a namespace of its own (unshare --user --mount), which failed")
    script = tmp_path.with_suffix(".py")
    script.write_text(FULL_DISK)
    run = subprocess.run(
        [*alone, f"{mounted} exec {sys.executable} {script} {tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert run.returncode == 0, run.stderr
    assert "all of it" in run.stdout


@pytest.mark.distributed
def test_two_processes_fill_one_store_at_once(tmp_path: Path) -> None:
    """Two runs, or two ranks, see the same rows: neither may overwrite, lose or misread what the other keeps."""
    start = multiprocessing.get_context("spawn")
    ours = [*range(300), *range(100)]
    theirs = [*range(400, 150, -1), *range(400, 500)]
    processes = [start.Process(target=fill, args=(str(tmp_path), rows, 1500)) for rows in (ours, theirs)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    store = store_in(tmp_path)
    assert (len(store), hidden(tmp_path), list((tmp_path / TEACHER).glob("*.damaged"))) == (500, [], [])
    assert len(shards(tmp_path)) > 10
    assert all(is_row(row, number) for number, row in enumerate(store.read(keys_of(range(500)))))


@pytest.mark.distributed
def test_a_killed_process_leaves_the_store_valid(tmp_path: Path) -> None:
    """A kill -9 leaves the beginning of a file: it is not read, and who comes much later removes it."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        for _ in range(3):
            told = int(process.stdout.readline())
        end = time.monotonic() + 20
        while not hidden(tmp_path) and time.monotonic() < end:
            pass
        process.send_signal(signal.SIGKILL)
    (tmp_path / TEACHER / ".unfinished-0").write_bytes(b"the beginning")  # where the kill came between two files
    store = store_in(tmp_path)
    assert len(store) >= told
    assert len(store) % 200 == 0
    assert all(is_row(row, number) for number, row in enumerate(store.read(keys_of(range(len(store))))))
    assert ".unfinished-0" in hidden(tmp_path), "a process that lives may be writing it"
    for name in hidden(tmp_path):
        os.utime(tmp_path / TEACHER / name, (0, 0))
    store_in(tmp_path, writes=False)
    assert hidden(tmp_path)
    store_in(tmp_path)
    assert not hidden(tmp_path)
