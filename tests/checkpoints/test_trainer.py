"""The trainer's checkpoints: where they are written, what is resumed, what a full disk leaves."""

import errno
import json
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from toy_models import toy_bert
from training_toys import largest_difference, logged, text_rows, trainer_of, weights_of
from transformers import Trainer, TrainerCallback

from hfdistill import DistillationTrainer, HiddenStateLoss, Objective, SoftTargetLoss
from hfdistill.checkpoints.folders import UNFINISHED, checkpoints, flaw
from hfdistill.checkpoints.log_sums import LogSums


def run(folder: Path, steps: int = 4, **changes: Any) -> DistillationTrainer:
    """A run that saves every step and logs every third."""
    objective = Objective(kd=SoftTargetLoss(), hidden=HiddenStateLoss())
    options: dict[str, Any] = {"max_steps": steps, "save_strategy": "steps", "save_steps": 1, "logging_steps": 3}
    return trainer_of(folder, objective, toy_bert(width=8), text_rows(16), **(options | changes))


class Stop(TrainerCallback):
    """Ends the process of a run, as far as a test can, in the middle of a save."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        self.monkeypatch, self.step = monkeypatch, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", _die)


def _die(*args: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def disk_of(room: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_cut_off_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:  # type: ignore[no-untyped-def]
    """And the run goes on from the one before, and says so."""
    whole = run(tmp_path / "whole")
    whole.train()
    trainer = run(tmp_path / "cut", callbacks=[Stop(monkeypatch, 3)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    monkeypatch.undo()
    assert [path.name for path in checkpoints(tmp_path / "cut")] == ["checkpoint-1", "checkpoint-2"]
    assert (tmp_path / "cut" / UNFINISHED / "checkpoint-3" / "model.safetensors").is_file()
    rest = run(tmp_path / "cut")
    with caplog.at_level(logging.WARNING):
        rest.train(resume_from_checkpoint=True)
    assert "Resuming from" in caplog.text
    assert "checkpoint-2" in caplog.text
    assert largest_difference(weights_of(rest.model), weights_of(whole.model)) == 0.0
    assert not (tmp_path / "cut" / UNFINISHED).exists()


@pytest.mark.parametrize("step", [1, 2, 3])
def test_log_lines_of_a_resumed_run_are_the_whole_run_s(tmp_path: Path, step: int) -> None:
    """A line that begins before the checkpoint and ends after it is the mean over both parts; so is train_loss."""
    whole = run(tmp_path, steps=5)
    output = whole.train()
    rest = run(tmp_path / "rest", steps=5)
    resumed = rest.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert logged(rest) == logged(whole)
    assert resumed.training_loss == output.training_loss
    assert rest.state.log_history[-1]["train_loss"] == whole.state.log_history[-1]["train_loss"]


def test_seconds_of_a_resumed_run_count_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison would call a run that was interrupted at its end the fastest."""
    clock = iter(range(0, 100_000, 1000))  # each look at it is 1,000 seconds after the last
    monkeypatch.setattr("hfdistill.checkpoints.trainer.time.perf_counter", lambda: next(clock))
    run(tmp_path).train()
    rest = run(tmp_path / "rest")
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    before, after = (
        LogSums.load(place, 0, 1) for place in (tmp_path / "checkpoint-3", tmp_path / "rest" / "checkpoint-4")
    )
    assert before is not None
    assert after is not None
    assert (before.seconds, after.seconds) == (3000.0, 4000.0)
    assert rest.seconds_in_training() == 5000.0


def test_checkpoints_of_another_number_of_processes_say_what_the_log_loses(tmp_path: Path, caplog) -> None:  # type: ignore[no-untyped-def]
    """Weights can be resumed; whose sums are whose cannot be known."""
    run(tmp_path, logging_steps=1).train()
    (tmp_path / "checkpoint-2" / "log_sums_0-of-1.safetensors").unlink()
    (tmp_path / "checkpoint-2" / "checkpoint.json").unlink()
    rest = run(tmp_path / "rest", logging_steps=1)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert "no sums" not in caplog.text
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "no sums of the log for 1 processes" in caplog.text
    losses = [line["loss"] for line in logged(rest)[2:]]  # train_loss is then the Trainer's own: of this part
    assert rest.state.log_history[-1]["train_loss"] == pytest.approx(sum(losses) / len(losses))


def test_nothing_to_resume_from_is_told(tmp_path: Path) -> None:
    """A run that silently began anew would overwrite days of another."""
    with pytest.raises(ValueError, match="no complete checkpoint"):
        run(tmp_path).train(resume_from_checkpoint=True)
    run(tmp_path, steps=1).train()
    (tmp_path / "checkpoint-1" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        run(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"optimizer\.pt is missing"):
        run(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_the_limit_keeps_the_best_and_the_last(tmp_path: Path) -> None:
    """The state that is saved names the best checkpoint where it lies, not where it was written."""
    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "eval_dataset": text_rows(8)}
    trainer = run(tmp_path, steps=5, save_total_limit=1, greater_is_better=True, metric_for_best_model="loss", **best)
    trainer.train()  # the loss falls: where greater is better the first checkpoint is the best
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{trainer.state.best_global_step}")
    for folder in checkpoints(tmp_path):
        assert flaw(folder) == ""
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        assert UNFINISHED not in str(state["best_model_checkpoint"])
    assert (tmp_path / f"checkpoint-{trainer.state.best_global_step}").is_dir()
    assert len(checkpoints(tmp_path)) <= 2


@pytest.mark.parametrize("room", [3_000, 30_000])
def test_a_full_disk_stops_with_what_to_do_and_loses_nothing(tmp_path: Path, room: int) -> None:
    """In the middle of the weights, or of the optimizer's states: the checkpoints before stay, and resume."""
    adam = {"optim": "adamw_torch"}
    run(tmp_path, steps=2, **adam).train()
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "checkpoint-2").iterdir()}
    assert sizes["model.safetensors"] < 30_000 < sizes["optimizer.pt"]
    rest = run(tmp_path, steps=4, **adam)
    with (
        disk_of(room),
        pytest.raises(OSError, match=r"checkpoint-3 could not.*checkpoint-2\. Free") as told,
    ):
        rest.train(resume_from_checkpoint=True)
    assert told.value.errno in (errno.EFBIG, errno.EIO)
    assert not (tmp_path / UNFINISHED).exists(), "the room that half a checkpoint takes is what was missing"
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    run(tmp_path, steps=4, **adam).train(resume_from_checkpoint=True)
    assert flaw(tmp_path / "checkpoint-4") == ""


def test_another_error_of_a_save_keeps_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every RuntimeError in a save is the disk's."""

    def broken(*args: Any) -> None:
        raise RuntimeError("a callback of the user's")

    monkeypatch.setattr(Trainer, "_save_scaler", broken)
    with pytest.raises(RuntimeError, match=r"^a callback of the user's$"):
        run(tmp_path).train()
