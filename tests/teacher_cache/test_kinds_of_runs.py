"""A cache in runs of all kinds: adapters, language models, images, streams, and runs that have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cached_runs import ROWS, STEPS, CountingTeacher, apart, asked, cached_run, curve
from toy_models import toy_bert, toy_gpt2, toy_vit, with_lora
from training_toys import image_rows, text_rows, trainer_of

from hfdistill import (
    AttentionMapLoss,
    DistillationTrainer,
    HiddenStateLoss,
    Objective,
    SoftTargetLoss,
    TaskLoss,
    TopKLoss,
)
from hfdistill.representations import CACHED

TOLERANCE = 1e-5


def shards(cache: Path) -> list[Path]:
    """The files of a cache's rows."""
    return sorted(cache.rglob("*.safetensors"))


def test_the_base_of_an_adapter_is_found_whatever_the_adapter_learnt(tmp_path: Path) -> None:
    """One model is both: its key must be that of the frozen base alone."""

    def run(name: str, **changes: Any) -> DistillationTrainer:
        student = with_lora(toy_bert(seed=1), ["query", "value"])
        own = {"student": student, "teacher": student}
        return cached_run(tmp_path / name, Objective(kd=SoftTargetLoss()), tmp_path / "cache", **own, **changes)

    first = run("first")
    first.train()
    assert any(float(line["loss"]) > 0 for line in curve(first))
    second = run("second")
    for name, own in second.student.named_parameters():
        if "lora_" in name:
            own.data += 0.1
    before = len(shards(tmp_path / "cache"))
    second.train()
    assert len(shards(tmp_path / "cache")) == before, "nothing was missing"


def test_a_language_model_learns_from_its_likely_classes(tmp_path: Path) -> None:
    """The whole logits of a vocabulary would be a thousand times the text."""
    rows = text_rows(ROWS, labels="tokens")
    kind = {"student": toy_gpt2(head="LMHeadModel"), "rows": rows}

    def run(name: str, cache: Path | None = None) -> DistillationTrainer:
        teacher = CountingTeacher(toy_gpt2(layers=4, seed=1, head="LMHeadModel"))
        own = kind | {"student": toy_gpt2(head="LMHeadModel", seed=3), "teacher": teacher}
        made = cached_run(tmp_path / name, Objective(task=TaskLoss(), kd=TopKLoss(k=8, temperature=2.0)), cache, **own)
        made.train()
        return made

    live, filling, filled = run("live"), run("filling", tmp_path / "cache"), run("filled", tmp_path / "cache")
    assert apart(filling, live) < TOLERANCE
    assert apart(filled, live) < TOLERANCE
    assert asked(filled) == 0


def test_images_learn_from_the_cache(tmp_path: Path) -> None:
    """Pixels are what a row is; there is no padding and no mask."""

    def run(name: str, cache: Path | None = None) -> DistillationTrainer:
        own = {
            "student": toy_vit(seed=2),
            "teacher": CountingTeacher(toy_vit(layers=4, seed=1)),
            "rows": image_rows(ROWS),
        }
        objective = Objective(kd=SoftTargetLoss(), hidden=HiddenStateLoss(), maps=AttentionMapLoss())
        made = cached_run(tmp_path / name, objective, cache, **own)
        made.train()
        return made

    live, filling, filled = run("live"), run("filling", tmp_path / "cache"), run("filled", tmp_path / "cache")
    assert apart(filling, live) < TOLERANCE
    assert apart(filled, live) < TOLERANCE
    assert asked(filled) == 0


def test_a_stream_is_kept_as_it_passes(tmp_path: Path) -> None:
    """A stream has no length and no rows to look at ahead."""
    stream = text_rows(ROWS).to_iterable_dataset()
    plan = {"max_steps": 2 * STEPS, "num_train_epochs": 1}
    first = cached_run(tmp_path / "first", "kd", tmp_path / "cache", rows=stream, **plan)
    first.train()
    assert asked(first) == STEPS
    live = cached_run(tmp_path / "live", "kd", rows=stream, **plan)
    live.train()
    assert apart(first, live) < TOLERANCE


def test_a_run_without_a_teacher_has_no_cache(tmp_path: Path) -> None:
    """The control of a comparison has the arguments of the others."""
    run = trainer_of(tmp_path, Objective(task=TaskLoss()), teacher=None, teacher_cache=str(tmp_path / "cache"))
    run.train()
    assert not (tmp_path / "cache").exists()


def test_evaluation_adds_nothing(tmp_path: Path) -> None:
    """Evaluation rows are asked for live: a cache of the training set stays one."""
    run = cached_run(
        tmp_path / "run", "kd", tmp_path / "cache", eval_dataset=text_rows(4, seed=8), eval_objective=True
    )
    run.evaluate()
    assert not shards(tmp_path / "cache")
    loader = run.get_train_dataloader()
    assert all(CACHED not in batch for batch in loader), "only training learns from it"
