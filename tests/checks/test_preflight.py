"""What the trainer warns of when training starts."""

import logging
from pathlib import Path

import pytest
import torch
from checks.patients import KnowingTeacher, of, only, run_of
from torch import nn
from toy_models import toy_bert, toy_distilbert
from training_toys import text_rows, trainer_of

from hfdistill import DistillationTrainer, Findings, FrozenTeacher
from hfdistill.checks.preflight import preflight, teacher_running


def started(trainer: DistillationTrainer) -> Findings:
    """What the start of training finds."""
    return preflight(trainer.args, trainer.student, trainer.teacher, trainer.train_dataset, trainer.label_names)


def test_a_sound_run_is_told_its_batch_size_and_nothing_else(tmp_path: Path):
    """A warning at every start is one that nobody reads."""
    findings = started(trainer_of(tmp_path, rows=text_rows(token_types=True), gradient_accumulation_steps=3))
    assert [finding.check for finding in findings] == ["batch size"]
    assert findings[0].figures == {"rows": 12, "per_device": 4, "accumulation": 3, "processes": 1}


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_token_types_that_one_side_ignores(side: str, tmp_path: Path):
    """BERT sees where the second text begins, DistilBERT does not: the pair is another row to it."""
    blind = toy_distilbert(layers=2, seed=3)
    models = {"student": toy_bert(), "teacher": toy_bert(layers=4, seed=1), side: blind}
    rows = text_rows(token_types=True)
    (found,) = of(started(trainer_of(tmp_path, rows=rows, **models)), "inputs")
    assert found.level == "warning"
    assert found.figures == {"input": "token_type_ids", "ignored_by": side}
    zero = rows.map(lambda row: {"token_type_ids": [0] * len(row["input_ids"])})
    assert not of(started(trainer_of(tmp_path, rows=zero, **models)), "inputs")


def test_columns_that_neither_model_reads(tmp_path: Path):
    """A misspelt input column (of numbers per token) is dropped in silence by the Trainer; a text column should be."""
    rows = text_rows()
    rows = rows.add_column("text", ["x"] * len(rows)).add_column("attention_maks", rows["attention_mask"])
    trainer = trainer_of(tmp_path, rows=rows)
    rich, plain = of(started(trainer), "columns")
    assert (rich.level, rich.figures) == ("warning", {"columns": ["attention_maks"]})
    assert (plain.level, plain.figures) == ("note", {"columns": ["text"]})
    kept = trainer_of(tmp_path, rows=rows, remove_unused_columns=False)
    assert not of(started(kept), "columns")  # the user's collator may read them


def test_a_teacher_in_training_mode(tmp_path: Path):
    """Its dropout would teach noise. A FrozenTeacher mends its root's mode itself, but not that of a part."""
    teacher = FrozenTeacher(toy_bert(layers=4, seed=1))
    trainer = trainer_of(tmp_path, teacher=teacher)
    teacher.model.train()
    assert only(started(trainer), "teacher's mode").level == "note"
    teacher.model.eval()
    teacher.model.bert.encoder.layer[1].train()
    found = only(started(trainer), "teacher's mode")
    assert found.level == "warning"
    assert "bert.encoder.layer.1 is the first" in found.message

    class Own(KnowingTeacher):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Dropout()

    own = Own()
    assert only(started(run_of(tmp_path, teacher=own)), "teacher's mode").level == "warning"
    own.net.eval()
    assert not of(started(run_of(tmp_path, teacher=own)), "teacher's mode")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_precision_that_is_slow_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str):
    """Half precision is chosen for speed, and on a processor that only emulates it the run takes longer for it."""
    name = {"bfloat16": "avx512_bf16", "float16": "avx512_fp16"}[precision]
    for there in (False, True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda there=there: {name: there, "avx2": True})
        found = of(started(trainer_of(tmp_path, teacher_dtype=precision)), "teacher's precision")
        assert [one.level for one in found] == ["warning"] * (not there)
        assert there or (found[0].figures, found[0].advice) == (
            {"precision": precision, "device": "cpu"},
            "Set teacher_dtype='auto', or 'float32'.",
        )


def test_a_precision_that_would_be_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The doctor knows of the cheapest way to a faster run; training does not repeat it each time."""
    for unit, level in (("amx_bf16", "note"), ("avx2", "ok")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda unit=unit: {unit: True})
        trainer = trainer_of(tmp_path)
        found = only(teacher_running(trainer.teacher, trainer.args.device), "teacher's precision")
        assert found.level == level
        assert ("teacher_dtype='auto'" in found.message) == (level == "note")
        assert not of(started(trainer), "teacher's precision")


def test_training_logs_it(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The cheap part costs nothing, so nobody has to ask for it."""
    rows = text_rows().add_column("mask", [[1]] * 8)
    with caplog.at_level(logging.INFO, logger="hfdistill"):
        trainer_of(tmp_path, rows=rows, max_steps=1).train()
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert any(level == "INFO" and "4 rows per update" in text for level, text in told)
    assert any(level == "WARNING" and "mask, dropped before batches" in text for level, text in told)
