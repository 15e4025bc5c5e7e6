"""A cache filled ahead: one pass, resumable, its size told before, and in the words of a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cached_runs import ROWS, STEPS, CountingTeacher, asked, cached_run
from datasets import ClassLabel, Dataset, Features, Value
from test_text_classification import body as body
from training_toys import text_rows

from hfdistill import Needs, Objective, Representations, TaskLoss, expected_bytes, fill_cache
from hfdistill.cli import main
from hfdistill.teacher_cache.store import Layout, Store, stored_teachers


class Breaking(CountingTeacher):
    """A teacher whose machine goes down at the fourth batch."""

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        if len(self.asked) == 3:
            raise RuntimeError("the power is gone")
        return super().represent(inputs, needs)


def test_each_row_is_shown_once_the_longest_first(tmp_path: Path) -> None:
    """If memory is too small for the longest rows, that must show at once and not after an hour."""
    run = cached_run(tmp_path / "run", "pkd", tmp_path / "cache")
    filled = fill_cache(run)
    assert (filled.rows, filled.skipped) == (ROWS, 0)
    assert filled.bytes == ROWS * 4 * (3 + 16), "three logits and a vector, in float32"
    assert 0 < asked(run) <= STEPS + 1
    again = fill_cache(cached_run(tmp_path / "again", "pkd", tmp_path / "cache"))
    assert (again.rows, again.bytes, again.skipped) == (0, 0, ROWS)
    assert "24 were there already" in str(again)


def test_a_filling_that_broke_off_goes_on(tmp_path: Path) -> None:
    """What was shown is kept, so that only the rest is shown."""
    with pytest.raises(RuntimeError, match="the power is gone"):
        fill_cache(cached_run(tmp_path / "broken", "kd", tmp_path / "cache", teacher=Breaking()))
    rest = fill_cache(cached_run(tmp_path / "rest", "kd", tmp_path / "cache"))
    assert 0 < rest.rows < ROWS - 16
    assert rest.rows + rest.skipped == ROWS


def test_the_last_rows_are_kept_though_training_drops_them(tmp_path: Path) -> None:
    """Another order of the rows drops others."""
    run = cached_run(tmp_path, "kd", tmp_path / "cache", rows=text_rows(21), dataloader_drop_last=True)
    assert fill_cache(run).rows == 21
    assert run.args.dataloader_drop_last


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_size_is_told_before(dtype: str, tmp_path: Path) -> None:
    """Figures of a few rows, for all; within what ragged rows differ."""
    plan = {"teacher_cache_dtype": dtype, "rows": text_rows(64)}
    expected = expected_bytes(cached_run(tmp_path / "look", "tinybert", tmp_path / "look_cache", **plan))
    filled = fill_cache(cached_run(tmp_path / "run", "tinybert", tmp_path / "cache", **plan))
    assert expected == pytest.approx(filled.bytes, rel=0.25)
    assert expected_bytes(cached_run(tmp_path / "again", "tinybert", tmp_path / "cache", **plan)) == 0


def test_several_objectives_share_one_pass(tmp_path: Path) -> None:
    """The arms of a comparison learn different things of the same rows."""
    runs = [cached_run(tmp_path / name, name, tmp_path / "cache") for name in ("kd", "pkd", "tinybert", "minilm")]
    fill_cache(runs[0], runs[1:])
    assert 0 < asked(runs[0]) <= STEPS + 1
    assert not any(asked(run) for run in runs[1:])
    for name in ("kd", "pkd", "tinybert", "minilm"):
        run = cached_run(tmp_path / f"{name}-run", name, tmp_path / "cache")
        run.train()
        assert asked(run) == 0, name


def test_what_cannot_be_filled_is_told(tmp_path: Path) -> None:
    """There must be a cache, somebody to ask, and an end."""
    with pytest.raises(ValueError, match="Set teacher_cache"):
        fill_cache(cached_run(tmp_path / "none", "kd"))
    with pytest.raises(ValueError, match="Set teacher_cache"):
        fill_cache(cached_run(tmp_path / "task", Objective(task=TaskLoss()), tmp_path / "cache"))
    stream = cached_run(
        tmp_path / "stream", "kd", tmp_path / "cache", rows=text_rows(8).to_iterable_dataset(), max_steps=2
    )
    with pytest.raises(ValueError, match="known length"):
        fill_cache(stream)
    other = cached_run(tmp_path / "other", "kd", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="two teachers"):
        fill_cache(cached_run(tmp_path / "one", "kd", tmp_path / "cache"), [other])


# ---- the command ----


def recipe_of(folder: Path, teacher: Path, **more: Any) -> Path:
    """A recipe of two arms and two seeds on 24 rows."""
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    for split, count in (("train", 24), ("validation", 12)):
        rows = {"sentence": [f"the film is {'good' if i % 2 else 'bad'}" + " a" * i for i in range(count)]}
        place = folder / "glue" / "sst2"
        place.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(rows | {"label": [i % 2 for i in range(count)]}, features=features).to_parquet(
            place / f"{split}.parquet"
        )
    described = {"task": "sst2", "data_dir": str(folder / "glue"), "teacher": str(teacher), "student_layers": 2}
    described |= {"arms": ["control", "kd", "pkd"], "seeds": [0, 1], "output_dir": str(folder / "out"), "max_steps": 3}
    described |= {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no"}
    path = folder / "recipe.json"
    path.write_text(json.dumps(described | {"teacher_cache": str(folder / "cache")} | more), encoding="utf-8")
    return path


def test_a_recipe_fills_its_cache_once_for_all_arms_and_seeds(
    body: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `hfdistill cache` kept, `hfdistill train` finds in each of its runs."""
    recipe = str(recipe_of(tmp_path, body))
    assert main(["cache", recipe, "--estimate"]) == 0
    assert "MB are still to be written" in capsys.readouterr().out
    assert main(["cache", recipe]) == 0
    assert "rows kept" in capsys.readouterr().out
    (key,) = stored_teachers(tmp_path / "cache")
    assert len(Store.open(tmp_path / "cache", key, Layout(("logits",)))) == 24

    def unasked(*_: Any) -> Any:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr("hfdistill.teachers.FrozenTeacher.represent", unasked)
    assert main(["train", recipe]) == 0
    assert "| pkd" in capsys.readouterr().out


def test_a_recipe_without_a_cache_is_told(body: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before data and teacher are loaded."""
    assert main(["cache", str(recipe_of(tmp_path, body, teacher_cache=None))]) == 2
    assert "--teacher_cache DIR" in capsys.readouterr().err
    assert main(["cache", str(recipe_of(tmp_path, body, arms=["control"]))]) == 2
    assert "an arm that learns" in capsys.readouterr().err
