"""A run from the teacher's cache is the live run: two shuffled epochs, step by step, however the rows are batched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cached_runs import EPOCHS, ONCE, ROWS, STEPS, apart, asked, cached_run, curve
from launching import in_two_processes
from toy_models import toy_bert
from training_toys import largest_difference, weights_of

from hfdistill import fill_cache

TOLERANCE = 1e-5
BATCHING: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "grouped": {"train_sampling_strategy": "group_by_length"},
    "accumulated": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
}


@pytest.mark.parametrize("batching", BATCHING)
@pytest.mark.parametrize("preset", ["kd", "pkd", "tinybert", "minilm"])
def test_the_loss_curve_is_the_live_one(preset: str, batching: str, tmp_path: Path) -> None:
    """What the cache saves must cost nothing of the result, neither while it is filled nor after."""
    options = BATCHING[batching]
    live = cached_run(tmp_path / "live", preset, **options)
    live.train()
    assert len(curve(live)) == EPOCHS * STEPS
    for name in ("filling", "filled"):
        run = cached_run(tmp_path / name, preset, tmp_path / "cache", **options)
        run.train()
        assert apart(run, live) < TOLERANCE, name
        steps = len(run.teacher.asked)  # type: ignore[union-attr]
        assert 0 < steps <= 1 + STEPS * run.args.gradient_accumulation_steps if name == "filling" else not steps


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_near(dtype: str, tmp_path: Path) -> None:
    """What saves half the disk rounds the targets, and no more than that."""
    live = cached_run(tmp_path / "live", "pkd")
    live.train()
    run = cached_run(tmp_path / "run", "pkd", tmp_path / "cache", teacher_cache_dtype=dtype)
    run.train()
    assert 0 < apart(run, live) < 0.02


@pytest.mark.slow
def test_workers_bring_the_same(tmp_path: Path) -> None:
    """In a worker the cache is read by a process that never saw it being filled."""
    live = cached_run(tmp_path / "live", "pkd")
    live.train()
    workers = {"dataloader_num_workers": 2}
    for name in ("filling", "filled"):
        run = cached_run(tmp_path / name, "pkd", tmp_path / "cache", **workers)
        run.train()
        assert apart(run, live) < TOLERANCE
    assert asked(run) == 0
    kept = cached_run(tmp_path / "kept", "pkd", tmp_path / "other", dataloader_persistent_workers=True, **workers)
    kept.train()
    assert apart(kept, live) < TOLERANCE
    assert asked(kept) <= ONCE, "workers that outlive an epoch find what was written in it"


@pytest.mark.parametrize("stop", [3, 8])
def test_a_resumed_run_goes_on_from_what_was_kept(stop: int, tmp_path: Path) -> None:
    """A run that was cut off in the middle of filling must neither ask again nor end elsewhere."""
    saving = {"save_strategy": "steps", "save_steps": stop, "optim": "adamw_torch", "learning_rate": 1e-3}
    whole = cached_run(tmp_path / "whole", "tinybert", **saving)
    whole.train()
    cached = cached_run(tmp_path / "cached", "tinybert", tmp_path / "cache", **saving)
    cached.train()
    resumed = cached_run(tmp_path / "cached", "tinybert", tmp_path / "cache", **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cached" / f"checkpoint-{stop}"))
    assert asked(resumed) == 0
    assert largest_difference(weights_of(whole.student), weights_of(resumed.student)) < TOLERANCE


def test_filled_ahead_is_filled_while_training(tmp_path: Path) -> None:
    """Both ways keep the same of each row, though the batches are others."""
    live = cached_run(tmp_path / "live", "tinybert")
    live.train()
    filled = fill_cache(cached_run(tmp_path / "fill", "tinybert", tmp_path / "cache"))
    assert filled.rows == ROWS
    run = cached_run(tmp_path / "run", "tinybert", tmp_path / "cache")
    run.train()
    assert asked(run) == 0
    assert apart(run, live) < TOLERANCE


def test_presets_and_seeds_share_what_they_can(tmp_path: Path) -> None:
    """The teacher's answers are the same for all students; another objective adds what it needs, and no more."""
    cached_run(tmp_path / "kd", "kd", tmp_path / "cache").train()
    other = cached_run(tmp_path / "seed", "kd", tmp_path / "cache", seed=7, student=toy_bert(layers=1, seed=9))
    other.train()
    assert asked(other) == 0
    wider = cached_run(tmp_path / "pkd", "pkd", tmp_path / "cache")
    wider.train()
    assert 0 < asked(wider) <= ONCE
    again = cached_run(tmp_path / "again", "kd", tmp_path / "cache")
    again.train()
    assert asked(again) == 0
    live = cached_run(tmp_path / "live", "pkd")
    live.train()
    assert apart(wider, live) < TOLERANCE


@pytest.mark.distributed
def test_two_processes_share_one_cache(tmp_path: Path) -> None:
    """Each asks for its own rows in the first epoch, and finds those of the other in the second."""
    in_two_processes(str(Path(__file__).with_name("cached_processes.py")), str(tmp_path))
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for one in told:
        assert one["filling"]["apart"] < TOLERANCE
        assert one["ahead"] == {"apart": one["ahead"]["apart"], "asked": 0}
        assert one["ahead"]["apart"] < TOLERANCE
    assert sum(one["filling"]["asked"] for one in told) <= STEPS + 2, "of a few rows both ask, to see what they take"
    assert told[0]["filled"] == told[1]["filled"] == ROWS
