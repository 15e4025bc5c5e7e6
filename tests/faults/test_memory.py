"""Memory that runs out: what is said, in which order, and that who looks for the error still finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_models import toy_bert, toy_vit, with_lora
from training_toys import image_rows, logged, text_rows, trainer_of

from hfdistill import (
    AttentionMapLoss,
    DistillationLoss,
    DistillationTrainer,
    HiddenStateLoss,
    Objective,
    SoftTargetLoss,
)
from hfdistill.faults.memory import BatchShape
from hfdistill.representations import Batch, Needs, Representations

EVEN = text_rows(tokens=(8, 8))
CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB."


class HungryLoss(DistillationLoss):
    """A loss that wants more memory than there is, for more than so many rows.

    Args:
        rows: that it can take.
        accelerator: fail as a GPU does; otherwise ask the CPU for what no machine has.
    """

    def __init__(self, rows: int = 0, accelerator: bool = False) -> None:
        super().__init__(weight=1.0)
        self.rows, self.accelerator = rows, accelerator

    def needs(self) -> tuple[Needs, Needs]:
        """The student's logits."""
        return Needs(logits=True), Needs()

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """As above."""
        if batch.size > self.rows:
            if self.accelerator:
                raise torch.OutOfMemoryError(CUDA)
            torch.empty(2**45)
        assert student.logits is not None
        return student.logits.square().mean()


def told(trainer: DistillationTrainer, kind: type[BaseException], words: str) -> str:
    """What a run that ends for want of memory says beside torch's own words."""
    with pytest.raises(kind) as found:
        trainer.train()
    assert type(found.value) is kind
    assert words in str(found.value)
    (note,) = found.value.__notes__
    return str(note)


@pytest.mark.parametrize(
    ("accelerator", "kind", "words"),
    [(False, RuntimeError, "can't allocate memory"), (True, torch.OutOfMemoryError, "CUDA out of memory")],
    ids=["CPU", "GPU"],
)
def test_it_says_what_was_in_the_batch_and_what_to_cut(
    tmp_path: Path, accelerator: bool, kind: type[BaseException], words: str
) -> None:
    """The error itself only says how many bytes one tensor wanted; its kind stays, for who looks for it."""
    objective = Objective(hidden=HiddenStateLoss(), hungry=HungryLoss(accelerator=accelerator))
    said = told(trainer_of(tmp_path, objective, rows=EVEN, gradient_accumulation_steps=3), kind, words)
    assert "Memory ran out with 4 rows of 8 tokens" in said
    assert "student: hidden states of [0, 1, 2], attention of []" in said
    assert "teacher: hidden states of [0, 2, 4], attention of []" in said
    assert "Teacher: float32" in said
    for cut in (
        "per_device_train_batch_size=2 with gradient_accumulation_steps=6",
        "rows cut to 4 tokens",
        "fewer captured layers",
        "activation_checkpointing=True",
        "the teacher in 16 bits: teacher_dtype='bfloat16'",
    ):
        assert f"  - {cut}" in said


def test_the_largest_cut_comes_first(tmp_path: Path) -> None:
    """Long rows with attention maps, a large teacher, or neither: the advice must not be the same for all."""
    attention = Objective(maps=AttentionMapLoss(), hungry=HungryLoss())
    runs: dict[str, dict[str, Any]] = {
        "fewer captured layers": {"objective": attention, "rows": text_rows(tokens=(60, 60))},
        "the teacher in 16 bits": {"student": toy_bert(vocabulary=4096), "teacher": toy_bert(vocabulary=4096, seed=1)},
        "activation_checkpointing=True": {"teacher": toy_bert(width=2, seed=1)},
    }
    for first, changes in runs.items():
        changes = {"objective": Objective(hungry=HungryLoss()), "rows": EVEN} | changes
        said = told(trainer_of(tmp_path, **changes), RuntimeError, "can't allocate memory")
        assert said.split("  - ")[1].startswith(first), said


def test_images_are_measured_in_pixels(tmp_path: Path) -> None:
    """Pictures have no tokens to cut."""
    teacher = toy_vit(layers=4, seed=1)
    said = told(
        trainer_of(tmp_path, Objective(hungry=HungryLoss()), toy_vit(), image_rows(), teacher=teacher),
        RuntimeError,
        "can't allocate memory",
    )
    assert "4 images of 3x8x8" in said
    assert "images of half the height and width" in said
    assert "tokens" not in said


def test_a_teacher_that_is_the_student_takes_nothing(tmp_path: Path) -> None:
    """With an adapter the base is there once, and loading it in 16 bits would change the student."""
    student = with_lora(toy_bert(), ["query"])
    said = told(
        trainer_of(tmp_path, Objective(kd=SoftTargetLoss(), hungry=HungryLoss()), student, teacher=student),
        RuntimeError,
        "can't allocate memory",
    )
    assert "Teacher: the student's own base." in said
    assert "16 bits" not in said


def test_a_smaller_batch_is_still_found_automatically(tmp_path: Path) -> None:
    """Accelerate tries smaller batches as long as it can see what the error is."""
    objective = Objective(kd=SoftTargetLoss(), hungry=HungryLoss(rows=2, accelerator=True))
    trainer = trainer_of(tmp_path, objective, auto_find_batch_size=True)
    trainer.train()
    assert trainer._train_batch_size == 2
    assert len(logged(trainer)) == 2


def test_nothing_is_invented_before_the_first_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models alone may be too large: then cutting the batch helps nobody."""
    trainer = trainer_of(tmp_path)

    def too_large(*_: Any) -> None:
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(trainer, "create_optimizer", too_large)
    assert "before the first batch" in told(trainer, torch.OutOfMemoryError, "CUDA")


def test_a_shape_is_read_from_what_the_models_are_given() -> None:
    """Whichever of the usual names the batch has."""
    assert str(BatchShape.of({"labels": torch.zeros(2), "input_ids": torch.zeros(2, 7)})) == "2 rows of 7 tokens"
    assert str(BatchShape.of({"inputs_embeds": torch.zeros(2, 7, 5)})) == "2 rows of 7 tokens"
    assert BatchShape.of({"labels": torch.zeros(2)}) is None
