"""What the trainer warns of when training starts."""

import logging
from pathlib import Path

import pytest
from checks.patients import KnowingTeacher, of, only, run_of
from torch import nn
from toy_models import toy_bert, toy_distilbert
from training_toys import text_rows, trainer_of

from hfdistill import DistillationTrainer, Findings, FrozenTeacher
from hfdistill.checks.preflight import preflight


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


def test_training_logs_it(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The cheap part costs nothing, so nobody has to ask for it."""
    rows = text_rows().add_column("mask", [[1]] * 8)
    with caplog.at_level(logging.INFO, logger="hfdistill"):
        trainer_of(tmp_path, rows=rows, max_steps=1).train()
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert any(level == "INFO" and "4 rows per update" in text for level, text in told)
    assert any(level == "WARNING" and "mask, dropped before batches" in text for level, text in told)
