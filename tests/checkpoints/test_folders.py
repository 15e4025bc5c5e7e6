"""A checkpoint on disk is complete or it isn't one."""

import json
import logging
import os
from pathlib import Path

import pytest

from hfdistill.checkpoints.folders import (
    SEAL,
    UNFINISHED,
    check_complete,
    checkpoints,
    clear_unfinished,
    flaw,
    last_complete_checkpoint,
    publish,
    remove,
    surplus,
)


def written(run: Path, step: int) -> Path:
    """A checkpoint of two files, one of them in a folder, in its place."""
    aside = run / UNFINISHED / f"checkpoint-{step}"
    (aside / "shards").mkdir(parents=True)
    (aside / "model.safetensors").write_bytes(b"weights" * step)
    (aside / "shards" / "0.bin").write_bytes(b"shard")
    return publish(aside, run)


def test_a_published_checkpoint_is_complete(tmp_path: Path) -> None:
    """With all of its files, those in folders, too, and nothing left aside."""
    place = written(tmp_path, 3)
    assert place == tmp_path / "checkpoint-3"
    assert flaw(place) == ""
    seal = json.loads((place / SEAL).read_text(encoding="utf-8"))
    assert seal == {"step": 3, "files": {"model.safetensors": 21, "shards/0.bin": 5}}
    assert list((tmp_path / UNFINISHED).iterdir()) == []
    check_complete(place)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "shards" / "0.bin").unlink(), "shards/0.bin is missing"),
        (lambda folder: os.truncate(folder / "model.safetensors", 4), "model.safetensors has 4 bytes of 21"),
        (lambda folder: (folder / SEAL).write_text("{"), "cannot be read"),
        (lambda folder: (folder / SEAL).write_text("[]"), "cannot be read"),
    ],
    ids=["lost", "cut off", "seal cut off", "seal of others"],
)
def test_a_damaged_checkpoint_is_found_and_passed_over(tmp_path: Path, caplog, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    """A copy that broke off must not be resumed from, and the one before it must."""
    before, damaged = written(tmp_path, 2), written(tmp_path, 3)
    damage(damaged)
    assert message in flaw(damaged)
    with caplog.at_level(logging.WARNING):
        assert last_complete_checkpoint(tmp_path) == str(before)
    assert "checkpoint-3" in caplog.text
    with pytest.raises(ValueError, match=f"{message}.*resume_from_checkpoint=True"):
        check_complete(damaged)


def test_a_checkpoint_of_others_is_taken_by_name_only(tmp_path: Path, caplog) -> None:  # type: ignore[no-untyped-def]
    """The Trainer's own has no seal: who names it wants it, but nobody can say that it is whole."""
    ours, theirs = written(tmp_path, 2), tmp_path / "checkpoint-9"
    theirs.mkdir()
    (theirs / "trainer_state.json").write_text("{}")
    assert last_complete_checkpoint(tmp_path) == str(ours)
    caplog.clear()
    check_complete(theirs)
    assert "was not written by this trainer" in caplog.text


def test_a_folder_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    """A mistyped step should not end in a stack trace of the Trainer's."""
    written(tmp_path, 2)
    with pytest.raises(FileNotFoundError, match=r"checkpoint-7.*holds checkpoint-2"):
        check_complete(tmp_path / "checkpoint-7")
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


def test_checkpoints_are_ordered_by_step(tmp_path: Path) -> None:
    """Neither by name (10 before 9) nor among other folders."""
    for step in (10, 9, 100):
        written(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]


def test_a_removal_cut_off_leaves_nothing_to_resume_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dying between the renaming and the deletion of a checkpoint must not leave half of it in its place."""
    place = written(tmp_path, 2)
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors: None)
    remove(place)
    monkeypatch.undo()
    assert checkpoints(tmp_path) == []
    assert list((tmp_path / UNFINISHED).iterdir())
    clear_unfinished(tmp_path)
    assert not (tmp_path / UNFINISHED).exists()


def test_a_step_that_is_written_again_replaces_the_old_one(tmp_path: Path) -> None:
    """After resuming further back the run passes the same steps, with other weights perhaps."""
    written(tmp_path, 2)
    aside = tmp_path / UNFINISHED / "checkpoint-2"
    aside.mkdir(parents=True)
    (aside / "model.safetensors").write_bytes(b"new")
    assert (publish(aside, tmp_path) / "model.safetensors").read_bytes() == b"new"
    assert flaw(tmp_path / "checkpoint-2") == ""


@pytest.mark.parametrize(
    ("limit", "kept", "expected"),
    [
        (None, [5], []),
        (0, [5], []),
        (3, [5], [1, 2]),
        (1, [5], [1, 2, 3, 4]),
        (1, [5, 2], [1, 3, 4]),
        (2, [3], [1, 2, 4]),
    ],
)
def test_the_oldest_go_and_the_kept_stay(tmp_path: Path, limit: int | None, kept: list[int], expected) -> None:  # type: ignore[no-untyped-def]
    """The best one, and the one just written even where a higher step lies there from an earlier attempt."""
    for step in (1, 2, 3, 4, 5):
        os.utime(written(tmp_path, step), ns=(step, step))
    chosen = {tmp_path / f"checkpoint-{step}" for step in kept}
    assert [path.name for path in surplus(tmp_path, limit, chosen)] == [f"checkpoint-{step}" for step in expected]
