"""A teacher that is nothing but its cache: what it knows, and what it says where it knows nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from cached_runs import apart, cached_run
from toy_models import FAMILIES, toy_bert, toy_swin
from training_toys import collate, text_rows, trainer_of

from hfdistill import Anatomy, CachedTeacher, Needs, UnknownRowsError, fill_cache
from hfdistill.teacher_cache.teacher import anatomy_of


def filled(folder: Path, objective: str = "pkd") -> Path:
    """A cache of all rows."""
    fill_cache(cached_run(folder / "fill", objective, folder / "cache"))
    return folder / "cache"


def test_it_teaches_like_the_model(tmp_path: Path) -> None:
    """The teacher's weights may lie on another machine, or not fit beside the student."""
    teacher = CachedTeacher(filled(tmp_path))
    live = cached_run(tmp_path / "live", "pkd")
    live.train()
    run = cached_run(tmp_path / "run", "pkd", teacher=teacher)
    run.train()
    assert apart(run, live) < 1e-5


@pytest.mark.parametrize("family", [*FAMILIES, "swin"])
def test_its_anatomy_survives_json(family: str) -> None:
    """Losses bind to it: a tuple that came back as a list would make other layer maps and projectors."""
    anatomy = Anatomy.of(toy_swin() if family == "swin" else FAMILIES[family][0]())
    assert anatomy_of(json.loads(json.dumps(asdict(anatomy)))) == anatomy


def test_a_row_that_is_missing_is_told(tmp_path: Path) -> None:
    """Another data set, or tokens of another length, must not train on somebody else's answers."""
    cache = filled(tmp_path)
    run = cached_run(tmp_path / "run", "pkd", teacher=CachedTeacher(cache), rows=text_rows(24, seed=5))
    with pytest.raises(UnknownRowsError, match=r"4 of 4 rows(.|\n)*max_length"):
        run.train()


def test_what_an_objective_needs_more_is_told(tmp_path: Path) -> None:
    """The rows are there, but not all that this objective learns from."""
    cache = filled(tmp_path, "kd")
    run = cached_run(tmp_path / "run", "tinybert", teacher=CachedTeacher(cache))
    with pytest.raises(UnknownRowsError, match="needs more of the teacher"):
        run.train()


def test_evaluation_of_the_objective_needs_its_rows(tmp_path: Path) -> None:
    """`eval_objective` asks the teacher about rows that no training run keeps."""
    cache, rows = filled(tmp_path), text_rows(24)
    run = cached_run(
        tmp_path / "run",
        "pkd",
        teacher=CachedTeacher(cache),
        eval_dataset=text_rows(4, seed=8),
        eval_objective=True,
        eval_strategy="epoch",
    )
    with pytest.raises(UnknownRowsError, match="4 of 4 rows"):
        run.train()
    known = trainer_of(tmp_path / "known", "pkd", teacher=CachedTeacher(cache), eval_dataset=rows, eval_objective=True)
    assert known.evaluate()["eval_loss/kd"] > 0


def test_several_teachers_are_told_apart(tmp_path: Path) -> None:
    """Whose answers are learnt must not depend on the order of a folder."""
    cache = filled(tmp_path, "kd")
    only = CachedTeacher(cache)
    fill_cache(cached_run(tmp_path / "other", "kd", cache, teacher=toy_bert(layers=3, seed=2)))
    with pytest.raises(ValueError, match="which teacher"):
        CachedTeacher(cache)
    with pytest.raises(ValueError, match="which teacher"):
        CachedTeacher(cache, key="0" * 64)
    assert CachedTeacher(cache, only.key).anatomy.depth == 4


def test_it_shows_rows_to_whoever_asks(tmp_path: Path) -> None:
    """The protocol of a teacher: a batch in, representations out, without a trainer."""
    teacher, batch = CachedTeacher(filled(tmp_path, "kd")), collate(list(text_rows(24))[:5])
    shown = teacher.represent(batch, Needs(logits=True)).logits
    assert shown is not None
    live = toy_bert(layers=4, seed=1)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(shown, live.detach(), rtol=1e-5, atol=1e-6)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """A misspelt folder must not look like a cache that knows no row."""
    with pytest.raises(FileNotFoundError, match="no folder"):
        CachedTeacher(tmp_path / "nothing")


def test_a_cache_of_a_cache_is_refused(tmp_path: Path) -> None:
    """It has no weights that a key could be made of."""
    teacher = CachedTeacher(filled(tmp_path, "kd"))
    with pytest.raises(ValueError, match="Leave teacher_cache out"):
        cached_run(tmp_path / "run", "kd", tmp_path / "again", teacher=teacher)
