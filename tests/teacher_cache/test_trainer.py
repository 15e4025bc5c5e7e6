"""A run with a cache: what is asked for anew, what is refused, and what is kept when it breaks."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cached_runs import ONCE, ROWS, CountingTeacher, apart, asked, cached_run, curve
from toy_models import toy_bert, toy_t5, toy_vit
from training_toys import collate, image_rows, text_rows
from transformers import TrainerCallback

from hfdistill import (
    AttentionMapLoss,
    DistillationTrainer,
    FrozenTeacher,
    Needs,
    Objective,
    Representations,
    SoftTargetLoss,
    UnknownRowsError,
)
from hfdistill.teacher_cache import store as stores

TOLERANCE = 1e-5


def shards(cache: Path) -> list[Path]:
    """The files of a cache's rows."""
    return sorted(cache.rglob("*.safetensors"))


def kept_rows(run: DistillationTrainer) -> int:
    """How many rows the run finds in its cache."""
    assert run._teaching.cache is not None
    return len(run._teaching.cache.store)


# ---- what another teacher, or another row, is ----


def changed_teacher() -> CountingTeacher:
    """The toy teacher after one more weight update."""
    model = toy_bert(layers=4, seed=1)
    with torch.no_grad():
        model.classifier.bias[0] += 1e-3
    return CountingTeacher(model)


def shorter(rows: Any) -> dict[str, torch.Tensor]:
    """Another max_length: tokens after the sixth are cut off."""
    return {name: value[:, :6] if value.dim() == 2 else value for name, value in collate(rows).items()}


def other_ids(rows: Any) -> dict[str, torch.Tensor]:
    """Another tokenizer: the same texts in other numbers."""
    batch = collate(rows)
    return {**batch, "input_ids": (68 - batch["input_ids"]).where(batch["attention_mask"].bool(), batch["input_ids"])}


OTHERS: dict[str, dict[str, Any]] = {
    "teacher": {"teacher": changed_teacher},
    "precision": {"teacher": lambda: CountingTeacher(toy_bert(layers=4, seed=1).bfloat16())},
    "order of the labels": {"teacher": lambda: CountingTeacher(label_map=[2, 0, 1])},
    "tokenizer": {"data_collator": lambda: other_ids},
    "max_length": {"data_collator": lambda: shorter},
    "data set": {"rows": lambda: text_rows(ROWS, seed=9)},
    "autocast": {"bf16": lambda: True},
}


@pytest.mark.parametrize("what", OTHERS)
def test_whatever_is_changed_is_asked_anew(what: str, tmp_path: Path) -> None:
    """A wrong hit would train on another teacher's answers, and nothing would tell."""
    cached_run(tmp_path / "first", "pkd", tmp_path / "cache").train()
    options = {name: make() for name, make in OTHERS[what].items()}
    live = cached_run(tmp_path / "live", "pkd", **options | {name: make() for name, make in OTHERS[what].items()})
    live.train()
    run = cached_run(tmp_path / "run", "pkd", tmp_path / "cache", **options)
    run.train()
    assert asked(run) > 1
    assert apart(run, live) < (TOLERANCE if what not in ("autocast", "precision") else 2e-2)


def test_part_of_the_rows_is_found(tmp_path: Path) -> None:
    """A subset hits, and a larger set asks for what is new alone."""
    cached_run(tmp_path / "first", "kd", tmp_path / "cache").train()
    part = cached_run(tmp_path / "part", "kd", tmp_path / "cache", rows=text_rows(ROWS).select(range(4, 16)))
    part.train()
    assert asked(part) == 0


# ---- what is refused, before training ----


def masked(rows: Any) -> dict[str, torch.Tensor]:
    """A collator that masks tokens at random, as for a masked language model."""
    batch = collate(rows)
    batch["input_ids"] = batch["input_ids"].masked_fill(torch.rand(batch["input_ids"].shape) < 0.3, 4)
    return batch


class Augmented(torch.utils.data.Dataset[Any]):
    """Images that are flipped at random when they are fetched."""

    def __init__(self) -> None:
        self.rows = list(image_rows(ROWS).with_format("torch"))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        row = self.rows[number]
        return {**row, "pixel_values": row["pixel_values"].flip(2) if torch.rand(()) < 0.5 else row["pixel_values"]}


IMAGES = {"student": toy_vit(), "teacher": toy_vit(layers=4, seed=1), "rows": image_rows(ROWS)}


@pytest.mark.parametrize(
    "options",
    [{"data_collator": masked}, IMAGES | {"rows": Augmented(), "data_collator": torch.utils.data.default_collate}],
)
def test_rows_that_are_drawn_anew_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    """Every epoch would miss, and the disk would fill up with rows that never come back."""
    run = cached_run(tmp_path, "kd", tmp_path / "cache", **options)
    with pytest.raises(UnknownRowsError, match="at random"):
        run.train()
    assert not shards(tmp_path / "cache")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (IMAGES | {"mixup_alpha": 0.8}, "mixes each row"),
        (IMAGES | {"cutmix_alpha": 1.0}, "mixes each row"),
        ({"uncertainty_mixup": True}, "mixes each row"),
        ({"objective": Objective(attention=AttentionMapLoss(reduction="tinybert"))}, "compares the scores of padding"),
        ({"teacher_cache_dtype": "int8"}, "teacher_cache_dtype must be one of"),
    ],
)
def test_what_cannot_be_used_again_is_refused(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """When the trainer is made, not after an epoch of misses."""
    with pytest.raises(ValueError, match=reason):
        cached_run(tmp_path, **{"objective": "kd", "cache": tmp_path / "cache"} | options)


def test_teachers_that_cannot_be_named_are_refused(tmp_path: Path) -> None:
    """Without weights there is no telling whose answers are kept."""

    class Ensemble:
        anatomy = CountingTeacher().anatomy

        def prepare(self, device: torch.device) -> None:
            """Nothing."""

        def represent(self, inputs: Any, needs: Needs) -> Representations:
            """Nothing."""
            return Representations()

    with pytest.raises(ValueError, match="a Ensemble tells none"):
        cached_run(tmp_path, "kd", tmp_path / "cache", teacher=Ensemble())
    seq2seq = {"student": toy_t5(), "teacher": toy_t5(layers=4, seed=1)}
    with pytest.raises(ValueError, match="an encoder and a decoder"):
        cached_run(tmp_path, Objective(kd=SoftTargetLoss()), tmp_path / "cache", **seq2seq)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_folder_is_told(tmp_path: Path) -> None:
    """Before training: an epoch of the teacher would be lost when its rows are to be written."""
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(OSError, match="cache"):
        cached_run(tmp_path / "run", "kd", tmp_path / "cache")


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    """Found out when the trainer is made."""
    (tmp_path / "cache").write_text("notes")
    with pytest.raises(OSError, match="cache"):
        cached_run(tmp_path / "run", "kd", tmp_path / "cache")


def test_too_little_room_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cache takes is known from a few rows."""
    monkeypatch.setattr("hfdistill.teacher_cache.folders.shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    run = cached_run(tmp_path / "run", "tinybert", tmp_path / "cache")
    with pytest.raises(OSError, match="MB") as caught:
        run.train()
    assert caught.value.errno == errno.ENOSPC
    assert run.state.global_step == 0


# ---- what breaks while it runs ----


class Stopping(TrainerCallback):
    """Ends a run by an interruption after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            raise KeyboardInterrupt


def test_what_was_shown_before_an_interruption_is_kept(tmp_path: Path) -> None:
    """The teacher's work of an hour is worth more than the run that was stopped."""
    run = cached_run(tmp_path / "run", "kd", tmp_path / "cache", callbacks=[Stopping(4)])
    with pytest.raises(KeyboardInterrupt):
        run.train()
    again = cached_run(tmp_path / "again", "kd", tmp_path / "cache")
    assert kept_rows(again) == kept_rows(run) > 16, "more than what was looked at ahead"
    again.train()
    assert asked(run) + asked(again) <= ONCE


def test_a_full_disk_ends_the_run_and_leaves_the_cache_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what is there; what was written before is found by the next run."""
    cached_run(tmp_path / "first", "kd", tmp_path / "cache").train()
    before = shards(tmp_path / "cache")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stores, "write_shard", full)
    run = cached_run(tmp_path / "run", "pkd", tmp_path / "cache")
    with pytest.raises(OSError, match=r"[Nn]o space left|not be written"):
        run.train()
    monkeypatch.undo()
    assert shards(tmp_path / "cache") == before
    again = cached_run(tmp_path / "again", "kd", tmp_path / "cache")
    again.train()
    assert asked(again) == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_file_is_asked_for_again(tmp_path: Path) -> None:
    """A flipped bit would be learnt from for all epochs to come."""
    cached_run(tmp_path / "first", "pkd", tmp_path / "cache").train()
    live = cached_run(tmp_path / "live", "pkd")
    live.train()
    for path in shards(tmp_path / "cache"):
        content = bytearray(path.read_bytes())
        content[-5] ^= 0x10
        path.write_bytes(content)
    run = cached_run(tmp_path / "run", "pkd", tmp_path / "cache")
    run.train()
    assert asked(run) >= 1
    assert apart(run, live) < TOLERANCE
    again = cached_run(tmp_path / "again", "pkd", tmp_path / "cache")
    again.train()
    assert asked(again) == 0, "it was filled again"


def test_two_runs_may_fill_one_cache_at_once(tmp_path: Path) -> None:
    """Two arms of a comparison on two machines share a folder, and neither waits for the other."""
    runs = [cached_run(tmp_path / name, "pkd", tmp_path / "cache") for name in ("one", "other")]
    live = cached_run(tmp_path / "live", "pkd")
    live.train()
    errors: list[BaseException] = []

    def train(run: DistillationTrainer) -> None:
        try:
            run.train()
        except BaseException as error:  # noqa: BLE001  a thread's error is lost otherwise
            errors.append(error)

    threads = [threading.Thread(target=train, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    third = cached_run(tmp_path / "third", "pkd", tmp_path / "cache")
    third.train()
    assert asked(third) == 0
    assert apart(third, live) < TOLERANCE


def test_broken_numbers_are_not_kept(tmp_path: Path) -> None:
    """Where updates are skipped the run goes on; the row must not be NaN for ever."""

    class Overflowing(FrozenTeacher):
        calls = 0

        def represent(self, inputs: Any, needs: Needs) -> Representations:
            shown = super().represent(inputs, needs)
            self.calls += 1
            if self.calls == 2 and shown.logits is not None:
                shown.logits[:] = torch.nan
            return shown

    teacher = Overflowing(toy_bert(layers=4, seed=1))
    run = cached_run(tmp_path / "run", "kd", tmp_path / "cache", teacher=teacher, on_nonfinite="skip")
    run.train()
    last = cached_run(tmp_path / "last", "kd", tmp_path / "cache")
    last.train()
    assert asked(last) == 0, "asked for again in the second epoch"
    assert all(line["loss"] == line["loss"] for line in curve(last))
