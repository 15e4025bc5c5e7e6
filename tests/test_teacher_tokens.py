"""A teacher with a tokenizer of its own is given its own tokens, and the student never sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from toy_models import toy_bert
from training_toys import collate, text_rows, trainer_of

from hfdistill import Batch, FrozenTeacher, Needs, Objective, SoftTargetLoss, TaskLoss
from hfdistill.losses.batch_relation import BatchRelationLoss
from hfdistill.losses.response.cross_vocabulary import UniversalLogitLoss
from hfdistill.teacher_tokens import TeacherTokensCollator


class GapLoss(BatchRelationLoss):
    """The gap between mean lengths, which depends on what either model read."""

    def compare(self, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return (student.norm(dim=1).mean() - teacher.norm(dim=1).mean()).square()


def two_tokenizations(count: int = 6) -> Dataset:
    """Rows with other ids for the teacher, of another length."""
    ours, theirs = text_rows(count), text_rows(count, tokens=(4, 12), seed=1)
    columns: dict[str, Any] = {name: ours[name][:] for name in ours.column_names}
    columns |= {f"teacher_{name}": theirs[name][:] for name in ("input_ids", "attention_mask")}
    return Dataset.from_dict(columns)


def test_each_model_reads_its_own_tokens(tmp_path: Path) -> None:
    """Given the student's ids, a teacher of another vocabulary would read another text."""
    given: list[dict[str, Any]] = []

    class Watching(FrozenTeacher):
        def represent(self, inputs: Any, needs: Needs) -> Any:
            shown = super().represent(inputs, needs)
            given.append({"shown": shown, "inputs": inputs})
            return shown

    teacher = Watching(toy_bert(vocabulary=80, layers=3, width=24))
    trainer = trainer_of(
        tmp_path,
        Objective(task=TaskLoss(), gap=GapLoss()),
        rows=two_tokenizations(),
        teacher=teacher,
        data_collator=TeacherTokensCollator(collate, collate),
    )
    trainer.train()
    assert given
    for call in given:
        ids = call["inputs"]["teacher_input_ids"]
        (state,) = call["shown"].hidden_states.values()
        assert state.shape[:2] == ids.shape != call["inputs"]["input_ids"].shape
        with torch.no_grad():
            direct = teacher.model.base_model(ids, attention_mask=call["inputs"]["teacher_attention_mask"])
        torch.testing.assert_close(state, direct.last_hidden_state)


def test_tokenizers_may_differ_where_no_loss_compares_tokens(tmp_path: Path) -> None:
    """Sorted probabilities need no common vocabulary; soft targets do, and must go on being refused."""
    given = {
        "rows": two_tokenizations(),
        "teacher": toy_bert(vocabulary=80, layers=3, width=24),
        "data_collator": TeacherTokensCollator(collate, collate),
    }
    trainer_of(tmp_path, Objective(task=TaskLoss(), kd=UniversalLogitLoss()), **given).train()
    with pytest.raises(ValueError, match="vocabularies of different size"):
        trainer_of(tmp_path, Objective(task=TaskLoss(), kd=SoftTargetLoss()), **given)


def test_the_batch_knows_both_masks() -> None:
    """Pooling the teacher's states under the student's mask would read padding as text."""
    mask, theirs = torch.ones(2, 3), torch.ones(2, 5)
    batch = Batch.of({"attention_mask": mask, "teacher_attention_mask": theirs, "teacher_labels": theirs})
    assert batch.mask is mask
    assert batch.teacher_mask is theirs
    assert batch.teacher_labels is theirs


def test_rows_without_the_teachers_tokens_are_refused() -> None:
    """The teacher would be given nothing."""
    with pytest.raises(ValueError, match="tokenize each text with it too"):
        TeacherTokensCollator(collate, collate)([{"input_ids": [1]}])
