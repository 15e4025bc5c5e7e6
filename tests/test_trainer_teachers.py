"""Who may teach, what a teacher is given, and that teaching never changes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from toy_models import toy_bert, toy_distilbert
from training_toys import CLASSES, largest_difference, logged, text_rows, trainer_of, weights_of
from transformers import PreTrainedTokenizerFast, TrainerCallback

from hfdistill import (
    Anatomy,
    FrozenTeacher,
    HiddenStateLoss,
    Needs,
    Objective,
    Representations,
    SoftTargetLoss,
    TaskLoss,
)


def tokenizer(offset: int = 0) -> PreTrainedTokenizerFast:
    """A tokenizer of 64 words; `offset` turns the words' ids around."""
    words = ["[UNK]", "[PAD]", "It", "isn", "'", "t", "a", "bad", "film", ",", "is", "it", "?", "i", "don", "know"]
    words += [f"word{index}" for index in range(64 - len(words))]
    vocabulary = {word: at if at < 2 else 2 + (at - 2 + offset) % (len(words) - 2) for at, word in enumerate(words)}
    built = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    built.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=built, unk_token="[UNK]", pad_token="[PAD]")


class Watching(FrozenTeacher):
    """A teacher that remembers the names of what it is given."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.given: set[str] = set()

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        self.given = set(inputs)
        return super().represent(inputs, needs)


def test_teacher_reads_columns_the_student_cannot(tmp_path: Path) -> None:
    """A BERT teacher without its token types reads another text than it was trained on; DistilBERT refuses them."""
    student_given: set[str] = set()
    student = toy_distilbert()
    student.register_forward_pre_hook(lambda _, __, kwargs: student_given.update(kwargs), with_kwargs=True)
    teacher = Watching(toy_bert(layers=4, seed=1))
    rows = text_rows(token_types=True)
    run: dict[str, Any] = {"teacher": teacher, "eval_dataset": rows, "eval_objective": True, "max_steps": 1}
    trainer = trainer_of(tmp_path, "kd", student, rows, train_sampling_strategy="sequential", **run)
    assert trainer.args.remove_unused_columns
    trainer.train()
    assert "token_type_ids" in teacher.given
    assert "token_type_ids" not in student_given
    assert {"loss", "loss/kd"} <= logged(trainer)[0].keys()
    assert {"eval_loss", "eval_loss/kd"} <= trainer.evaluate().keys()
    assert trainer.predict(rows).predictions.shape == (8, CLASSES)
    without = trainer_of(tmp_path, "kd", toy_distilbert(), text_rows(), train_sampling_strategy="sequential")
    without.train()
    assert logged(without)[0]["loss/kd"] != pytest.approx(logged(trainer)[0]["loss/kd"], rel=1e-4)


def test_columns_nobody_reads_are_removed(tmp_path: Path) -> None:
    """Texts and row numbers in a dataset must not reach the collator, which cannot make tensors of them."""
    rows = text_rows().add_column("sentence", ["a text"] * 8)
    trainer_of(tmp_path, "kd", rows=rows).train()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_teacher_from_a_folder(tmp_path: Path, dtype: str) -> None:
    """A teacher saved in half precision overflows and rounds: unless asked otherwise it runs in float32."""
    folder = tmp_path / "teacher"
    toy_bert(layers=4, seed=1).half().save_pretrained(folder)
    run: dict[str, Any] = {"teacher_dtype": dtype} if dtype != "float32" else {}
    trainer = trainer_of(tmp_path, "kd", teacher=str(folder), **run)
    assert isinstance(trainer.teacher, FrozenTeacher)
    assert {value.dtype for value in trainer.teacher.model.parameters()} == {getattr(torch, dtype)}
    trainer.train()
    expected = trainer_of(tmp_path, "kd", teacher=toy_bert(layers=4, seed=1).half().float())
    expected.train()
    assert logged(trainer)[0]["loss/kd"] == pytest.approx(logged(expected)[0]["loss/kd"], rel=1e-6, abs=1e-3)


def test_teacher_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    """Random weights in the teacher's head teach noise, and transformers only warns."""
    toy_bert(layers=4, head="Model").save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match="no trained weights for classifier"):
        trainer_of(tmp_path, "kd", teacher=str(tmp_path / "teacher"))


def test_tokenizer_beside_the_teacher_is_compared(tmp_path: Path) -> None:
    """One batch of ids feeds both models: with two tokenizers they would read two texts."""
    folder = tmp_path / "teacher"
    toy_bert(layers=4, seed=1).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    trainer_of(tmp_path, "kd", teacher=str(folder), processing_class=tokenizer()).train()
    with pytest.raises(ValueError, match="tokenizer gives other ids"):
        trainer_of(tmp_path, "kd", teacher=str(folder), processing_class=tokenizer(offset=7))
    given = {"processing_class": tokenizer(), "teacher_processing_class": tokenizer(offset=7)}
    with pytest.raises(ValueError, match="tokenizer gives other ids"):
        trainer_of(tmp_path, "kd", **given)


def test_vocabularies_of_different_size_are_refused(tmp_path: Path) -> None:
    """Without tokenizers to compare, the tables' sizes are all that can be looked at."""
    with pytest.raises(ValueError, match="vocabularies of different size, 64 and 80"):
        trainer_of(tmp_path, "kd", teacher=toy_bert(layers=4, vocabulary=80))


class Oracle:
    """A teacher without a model: it knows that the class is what the label says."""

    def __init__(self) -> None:
        self.anatomy = Anatomy(family="oracle", depth=1, width=1, classes=CLASSES)
        self.devices: list[torch.device] = []

    def prepare(self, device: torch.device) -> None:
        self.devices.append(device)

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        return Representations(logits=10.0 * torch.nn.functional.one_hot(inputs["labels"], CLASSES).float())


def test_anything_with_the_protocol_teaches(tmp_path: Path) -> None:
    """Ensembles, servers and files teach too; the trainer asks for three things and no more."""
    oracle = Oracle()
    run: dict[str, Any] = {"max_steps": 20, "optim": "adamw_torch", "learning_rate": 0.02}
    trainer = trainer_of(tmp_path, Objective(kd=SoftTargetLoss(1.0)), teacher=oracle, **run)
    trainer.train()
    assert oracle.devices == [trainer.args.device]
    batch = text_rows()
    labels = torch.tensor(batch["labels"])
    assert (torch.as_tensor(trainer.predict(batch).predictions).argmax(-1) == labels).float().mean() >= 0.75


def test_teacher_is_never_changed(tmp_path: Path) -> None:
    """A teacher that trains along, or drops out, is another teacher at every step."""
    teacher = toy_bert(layers=4, seed=1, hidden_dropout_prob=0.5).train()
    before = weights_of(teacher)

    class Meddling(TrainerCallback):
        def on_step_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
            assert not teacher.training, "the trainer's own train() reached the teacher"

    objective = Objective(task=TaskLoss(), kd=SoftTargetLoss(), hidden=HiddenStateLoss())
    trainer = trainer_of(tmp_path, objective, teacher=teacher, callbacks=[Meddling()], weight_decay=0.1)
    trainer.train()
    assert not teacher.training
    assert largest_difference(weights_of(teacher), before) == 0.0
    assert not [name for name, value in teacher.named_parameters() if value.requires_grad or value.grad is not None]
    assert not any(teacher is module for module in trainer.model.modules())


def test_teacher_set_to_training_still_teaches_without_dropout(tmp_path: Path) -> None:
    """Somebody who holds both models in one container calls train() on both."""
    losses = []
    for meddles in (False, True):
        teacher = toy_bert(layers=4, seed=1, hidden_dropout_prob=0.5)

        class Meddling(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                teacher.train(meddles)  # noqa: B023 - called within this turn of the loop

        trainer = trainer_of(tmp_path, "kd", teacher=teacher, callbacks=[Meddling()])
        trainer.train()
        losses.append([line["loss/kd"] for line in logged(trainer)])
    assert losses[0] == losses[1]


def test_no_teacher_for_an_objective_that_needs_one(tmp_path: Path) -> None:
    """A forgotten teacher must be an error at once, not a student that learnt from labels alone."""
    with pytest.raises(ValueError, match="learns from a teacher, but teacher is None"):
        trainer_of(tmp_path, "kd", teacher=None)


def test_what_is_no_teacher_is_refused(tmp_path: Path) -> None:
    """The first batch is too late to learn that a teacher cannot teach."""
    with pytest.raises(TypeError, match="got int"):
        trainer_of(tmp_path, "kd", teacher=3)
    student = toy_bert()
    with pytest.raises(ValueError, match=r"shares .* parameters with the student"):
        trainer_of(tmp_path, "kd", student, teacher=student)
    with pytest.raises(ValueError, match=r"shares .* parameters with the student"):
        trainer_of(tmp_path, "kd", student, teacher=FrozenTeacher(student))


def test_objective_as_a_configuration_gives_it(tmp_path: Path) -> None:
    """What stands in a YAML file must train exactly as the same objective written in Python."""
    written = {"task": {"loss": "TaskLoss", "weight": 0.1}, "kd": {"loss": "SoftTargetLoss", "weight": 0.9}}
    runs = []
    for objective in (written, {"preset": "kd"}, "kd"):
        trainer = trainer_of(tmp_path, objective)
        trainer.train()
        runs.append(weights_of(trainer.model))
    assert largest_difference(runs[0], runs[1]) < 1e-7
    assert largest_difference(runs[1], runs[2]) == 0.0
    with pytest.raises(TypeError, match="objective must be an Objective"):
        trainer_of(tmp_path, 3)  # type: ignore[arg-type]


def test_empty_training_set_is_refused(tmp_path: Path) -> None:
    """A misspelt filter leaves no row, and the Trainer would say something about a schedule."""
    with pytest.raises(ValueError, match="train_dataset is empty"):
        trainer_of(tmp_path, "kd", rows=text_rows().select([]))
