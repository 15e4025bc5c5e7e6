"""The doctor as a whole: what it leaves behind, what it says of layers and memory, and that it ends in every case."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checks.patients import of, only, run_of
from peft import LoraConfig
from toy_models import toy_bert, toy_deberta, toy_resnet, toy_vit
from training_toys import image_rows, text_rows, trainer_of, weights_of

from hfdistill import DistillationTrainer, SharedBaseTeacher, examine
from hfdistill.attachment import SUBMODULE
from hfdistill.checks import doctor, memory
from hfdistill.checks.examination import Examination


def state_of(trainer: DistillationTrainer) -> dict[str, Any]:
    """Everything of a trainer that an examination could change, as values that compare."""
    models = {"student": trainer.student, "objective": trainer.objective}
    models |= {"teacher": trainer.teacher.model} if trainer.teacher is not None else {}
    weights = {(side, key): value for side, model in models.items() for key, value in weights_of(model).items()}
    modes = {(side, name): part.training for side, model in models.items() for name, part in model.named_modules()}
    named = dict(trainer.student.named_parameters())
    gradients = {name: None if own.grad is None else own.grad.clone() for name, own in named.items()}
    flags = {name: own.requires_grad for name, own in named.items()}
    return {
        "weights": weights,
        "modes": modes,
        "hooks": (len(trainer.student._forward_hooks), len(trainer.student._forward_pre_hooks)),
        "gradients": gradients,
        "flags": flags,
        "submodule": SUBMODULE in dict(trainer.student.named_children()),
        "optimizer": (trainer.optimizer, trainer.lr_scheduler),
        "loaders": len(trainer.accelerator._dataloaders),
        "references": list(trainer.accelerator.gradient_state.dataloader_references),
        "models": len(trainer.accelerator._models),
        "step": trainer.state.global_step,
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
    }


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal, tensors bit by bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)


def runs(folder: Path) -> Iterator[DistillationTrainer]:
    """Trainers with much to disturb: dropout, projectors, memory banks, running averages, gradients that are set."""
    dropping = toy_bert(width=8, hidden_dropout_prob=0.3)
    yield trainer_of(folder, "crd", student=dropping, rows=text_rows(16))
    student = toy_bert(width=8)
    student.bert.encoder.train()
    student.classifier.weight.grad = torch.ones_like(student.classifier.weight)
    yield trainer_of(folder, "tinybert", student=student, train_sampling_strategy="group_by_length")
    yield trainer_of(folder, student=toy_resnet().train(), teacher=toy_vit(layers=4, seed=1), rows=image_rows(12))


def test_a_trainer_is_left_as_it_was(tmp_path: Path):
    """Whoever looks must not change what happens: bit by bit, and the run after it too."""
    for trainer in runs(tmp_path):
        before = state_of(trainer)
        assert examine(trainer, rows=4).worst != "error"  # left early, with batches to come
        after = state_of(trainer)
        assert not [key for key in before if not same(before[key], after[key])]


def test_a_run_after_an_examination_is_the_same_run(tmp_path: Path):
    """The order of the rows and dropout hang on random states that are used up early."""
    ends = []
    for looked_at in (False, True):
        torch.manual_seed(3)
        student = toy_bert(width=8, hidden_dropout_prob=0.3)
        trainer = trainer_of(tmp_path, "crd", student=student, rows=text_rows(16), max_steps=3)
        torch.manual_seed(5)
        if looked_at:
            examine(trainer, rows=4)
        trainer.train()
        ends.append({**weights_of(trainer.student), "loss": torch.tensor(trainer.state.log_history[0]["loss"])})
    assert same(*ends)


def test_a_teachers_mode_is_put_back(tmp_path: Path):
    """A teacher in training mode is looked at in evaluation mode, as it teaches; its owner finds it as it was."""
    trainer = trainer_of(tmp_path)
    trainer.teacher.model.train()
    examine(trainer)
    assert all(part.training for part in trainer.teacher.model.modules())


def test_projectors_are_listed_with_widths(tmp_path: Path):
    """A wrong layer map or width shows here first."""
    objective = {"hidden": {"loss": "HiddenStateLoss", "layers": [[1, 2], [2, 4]]}, "task": {"loss": "TaskLoss"}}
    found = only(examine(trainer_of(tmp_path, objective, student=toy_bert(width=8, vocabulary=64))), "projectors")
    assert found.level == "ok"
    rows = [{name: row[name] for name in row if name != "text"} for row in found.figures["projectors"]]
    pair = {"loss": "hidden", "widths": [8, 16], "parameters": 8 * 16 + 16}
    assert rows == [
        {**pair, "student_layer": 1, "teacher_layer": 2},
        {**pair, "student_layer": 2, "teacher_layer": 4},
    ]
    assert "hidden layer 2 -> 4: 8 -> 16" in found.message
    assert only(examine(trainer_of(tmp_path)), "projectors").figures["parameters"] == 0


def test_more_beside_the_student_than_in_it(tmp_path: Path):
    """A projector of such a size can learn in the student's place, and is thrown away with what it learnt."""
    objective = {"hidden": {"loss": "HiddenStateLoss"}}
    student = toy_bert(width=4, vocabulary=8)
    teacher = toy_bert(width=256, layers=2, vocabulary=8)
    rows = text_rows(8, labels=None).map(lambda row: {"input_ids": [token % 8 for token in row["input_ids"]]})
    found = only(examine(trainer_of(tmp_path, objective, student=student, teacher=teacher, rows=rows)), "projectors")
    assert found.level == "warning"
    assert found.figures["parameters"] > found.figures["student_parameters"]


@pytest.mark.parametrize(
    ("make", "needed", "level", "access"),
    [
        (toy_bert, False, "ok", "interface"),
        (toy_deberta, False, "ok", "outputs"),
        (toy_deberta, True, "note", "outputs"),
    ],
)
def test_attention_that_can_be_seen(make: Any, needed: bool, level: str, access: str, tmp_path: Path):
    """Families outside the interface fall back to eager attention in all layers, which costs memory."""
    objective: Any = {"attention": {"loss": "AttentionMapLoss", "target": "probabilities"}} if needed else "kd"
    backend = {"attn_implementation": "eager"} if make is toy_deberta else {}
    models = {"student": make(**backend), "teacher": make(layers=4, seed=1, **backend)}
    ours, theirs = of(examine(trainer_of(tmp_path, objective, **models)), "attention")
    assert (ours.level, theirs.level) == (level, level)
    assert (ours.figures["access"], ours.figures["needed"]) == (access, needed)


def test_eager_attention_that_nobody_needs(tmp_path: Path):
    """A habit of output_attentions=True; here it only costs."""
    ours, _ = of(examine(trainer_of(tmp_path, student=toy_bert(attn_implementation="eager"))), "attention")
    assert ours.level == "note"
    assert "attn_implementation='sdpa'" in ours.advice


@pytest.mark.parametrize(("optimizer", "states"), [("sgd", 0.0), ("adamw_torch", 2.0)])
def test_memory_is_counted_part_by_part(optimizer: str, states: float, tmp_path: Path):
    """Parameters, gradients and optimizer states are exact, so that only activations are an estimate."""
    student, teacher = toy_bert(), toy_bert(layers=4, seed=1)
    sizes = [sum(own.numel() * 4 for own in model.parameters()) for model in (student, teacher)]
    trainer = trainer_of(tmp_path, student=student, teacher=teacher, optim=optimizer)
    figures = only(examine(trainer), "memory").figures
    assert figures["gradients"] == sizes[0]
    assert figures["optimizer"] == states * sizes[0]
    buffers = [sum(own.numel() * own.element_size() for own in model.buffers()) for model in (student, teacher)]
    assert (figures["student"], figures["teacher"]) == (sizes[0] + buffers[0], sizes[1] + buffers[1])
    assert figures["free"] > 10**6


def test_activations_grow_with_the_batch_and_the_length(tmp_path: Path):
    """Twice the rows, twice the memory; a batch of short rows is scaled to the longest row of the set."""
    same_length = text_rows(32, tokens=(8, 8))
    held = {}
    for size in (4, 8):
        trainer = trainer_of(tmp_path, rows=same_length, per_device_train_batch_size=size)
        held[size] = only(examine(trainer), "memory").figures["activations"]
    assert held[8] == pytest.approx(2 * held[4], rel=0.1)
    from datasets import Dataset

    long = {"input_ids": [7] * 16, "attention_mask": [1] * 16, "labels": 0}
    rows = Dataset.from_list([*same_length, long])
    trainer = trainer_of(tmp_path, rows=rows, train_sampling_strategy="sequential")
    figures = only(examine(trainer, rows=8), "memory").figures
    assert figures["scale"] == 2.0
    assert figures["activations"] == pytest.approx(2 * held[4], rel=0.1)


def test_too_little_memory_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Better before the run than hours into it, at the longest batch."""
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    found = only(examine(trainer_of(tmp_path)), "memory")
    assert found.level == "warning"
    assert "gradient_accumulation_steps" in found.advice
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    assert only(examine(trainer_of(tmp_path)), "memory").level == "note"


def test_what_a_container_may_take_is_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The machine's free memory is not the container's."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    (tmp_path / "memory.current").write_text("500000\n")
    monkeypatch.setattr(memory, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    for limit, free in (("max", 4096000), ("1500000", 1000000), ("100", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert memory.free_memory(torch.device("cpu")) == free
    monkeypatch.setattr(memory, "_MEMORY", tmp_path / "none")
    assert memory.free_memory(torch.device("cpu")) is None


def test_a_shared_base_counts_once(tmp_path: Path):
    """One copy of the weights is student and teacher; the student's mode is not the teacher's."""
    from hfdistill.adapters import adapted

    student = adapted(toy_bert(), LoraConfig(target_modules=["query"], r=2, task_type="SEQ_CLS"))
    trainer = trainer_of(tmp_path, student=student, teacher=SharedBaseTeacher(student))
    student.train()
    findings = examine(trainer)
    assert "the student's own base" in only(findings, "teacher's mode").message
    assert only(findings, "memory").figures["teacher"] == 0
    assert findings.worst != "error"


def test_rows_that_cannot_be_read_are_a_finding(tmp_path: Path):
    """The doctor must not fall ill of its patient."""
    rows = text_rows(8).map(lambda row, at: {"labels": 9 if at == 3 else row["labels"]}, with_indices=True)
    found = examine(trainer_of(tmp_path, rows=rows))
    assert found.worst == "error"
    assert "labels must be 0 to 2" in only(found, "rows").message


def test_a_student_in_shards_is_left_alone(tmp_path: Path):
    """Under ZeRO-3 a process holds empty parameters; what fails on these would fail in no training."""
    student = toy_bert()
    student.classifier.weight.data = torch.empty(0)
    findings = examine(trainer_of(tmp_path, student=student))
    assert findings.worst == "note"
    assert "ZeRO-3" in only(findings, "rows").message


def test_a_check_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One broken loss must not hide what else is wrong."""

    def broken(examination: Examination) -> Any:
        raise RuntimeError("size mismatch")

    monkeypatch.setitem(doctor._EXAMINED, "layers", broken)
    findings = examine(run_of(tmp_path))
    assert only(findings, "layers").level == "error"
    assert "RuntimeError: size mismatch" in only(findings, "layers").message
    assert of(findings, "memory")


def test_a_trainer_without_data_or_rows_is_refused(tmp_path: Path):
    """There is nothing to look at."""
    trainer = trainer_of(tmp_path)
    with pytest.raises(ValueError, match="rows must be at least 1"):
        examine(trainer, rows=0)
    trainer.train_dataset = None
    with pytest.raises(ValueError, match="nothing to examine"):
        examine(trainer)


def test_evaluation_rows_are_looked_at_where_the_others_have_no_labels(tmp_path: Path):
    """A transfer set is unlabelled, but the teacher can be judged on what is evaluated."""
    objective = {"kd": {"loss": "SoftTargetLoss"}}
    trainer = trainer_of(tmp_path, objective, rows=text_rows(8, labels=None), eval_dataset=text_rows(24, seed=1))
    before = copy.copy(trainer.accelerator._dataloaders)
    found = only(examine(trainer), "teacher's quality")
    assert "24 labels of the evaluation data" in found.message
    assert trainer.accelerator._dataloaders == before
