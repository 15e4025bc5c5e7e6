"""Broken configurations and inputs for test_broken_input.py, by what is broken: each with the message that it must get.

A case is its name, what a user does (in an empty folder), the exception, and what its message must say: what came, and
what to do. All of these were silent once, or failed with a message of some library far below.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset, DatasetDict
from toy_models import text_inputs, toy_bert, toy_vit, with_lora
from training_toys import arguments, collate, image_rows, text_rows, trainer_of

from hfdistill import Experiment, FrozenTeacher, HiddenStateLoss, Objective, SoftTargetLoss, TaskLoss, student_from
from hfdistill.cli import main
from hfdistill.export import export_onnx
from hfdistill.publishing.push import push_student
from hfdistill.recipe_arguments import parse_recipe
from hfdistill.report.analysis import write_report


class Case(NamedTuple):
    """What is broken, how it comes to be, and what must be said of it."""

    name: str
    act: Callable[[Path], Any]
    error: type[BaseException]
    said: str


def train(here: Path, objective: Any = "kd", **changes: Any) -> None:
    """Two steps of a toy run."""
    trainer_of(here, objective, **changes).train()


def changed(**columns: Any) -> Dataset:
    """Eight rows of text of which every one has these values."""
    return Dataset.from_list([{**row, **columns} for row in text_rows()])


def first(**columns: Any) -> Dataset:
    """Eight rows of text of which the first has these values."""
    rows = [dict(row) for row in text_rows()]
    return Dataset.from_list([rows[0] | columns, *rows[1:]])


def pictures(value: Any) -> dict[str, Any]:
    """A run on images whose pixels all have this value."""
    rows = [{"pixel_values": [[[value] * 8] * 8] * 3, "labels": 0} for _ in image_rows()]
    return {"student": toy_vit(), "teacher": toy_vit(layers=4, seed=1), "rows": Dataset.from_list(rows)}


def argument(**changes: Any) -> Callable[[Path], Any]:
    """Make a run with these training arguments."""
    return lambda here: trainer_of(here, **changes)


def objective(given: Any) -> Callable[[Path], Any]:
    """Make a run with this objective."""
    return lambda here: trainer_of(here, given() if callable(given) else given)


def teacher(write: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Make a run whose teacher lies in a folder that `write` fills."""

    def act(here: Path) -> None:
        write(here / "teacher")
        trainer_of(here / "run", teacher=str(here / "teacher"))

    return act


def cut(folder: Path) -> None:
    """A saved model whose weights were cut off."""
    toy_bert(layers=4).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:900])


def configuration(text: str, name: str = "c.yaml", good: bool = True) -> Callable[[Path], Any]:
    """Read a recipe from a file of this text, after lines that are right."""
    lines = "task: sst2\nteacher: t\nstudent_layers: 3\nuse_cpu: true\n" if good else ""

    def act(here: Path) -> None:
        (here / name).write_bytes((lines + text).encode("utf-8", "surrogateescape"))
        parse_recipe([str(here / name)])

    return act


def command(*words: str) -> Callable[[Path], Any]:
    """Run `hfdistill`; what it says on standard error is the message."""

    def act(here: Path) -> None:
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = main([word.format(here=here) for word in words])
        raise SystemExit(f"{code}: {said.getvalue()}")

    return act


def resumed(folder: str, spoil: Callable[[Path], Any] = lambda run: None, **changes: Any) -> Callable[[Path], Any]:
    """Train and save, spoil something, and resume from a folder of it in another run."""

    def act(here: Path) -> None:
        trainer = trainer_of(here / "run", save_strategy="steps", save_steps=1)
        trainer.train()
        trainer.save_model(str(here / "student"))
        spoil(here / "run" / "checkpoint-1")
        trainer_of(here / "second", **changes).train(resume_from_checkpoint=str(here / folder))

    return act


def experiment(arms: Any = None, seeds: Any = (0,), **changes: Any) -> Callable[[Path], Any]:
    """Run a comparison."""

    def act(here: Path) -> None:
        settings: dict[str, Any] = {
            "teacher": toy_bert(layers=4, seed=1),
            "make_student": toy_bert,
            "arguments": arguments(here),
            "train_dataset": text_rows(),
            "evaluation": {"validation": text_rows(5, seed=1)},
            "data_collator": collate,
            "processing_class": None,
            "metrics": lambda logits, labels: {"accuracy": float((logits.argmax(-1) == labels).mean())},
            "metric": "accuracy",
            "output_dir": here,
        }
        Experiment(**settings | changes).run({"kd": "kd"} if arms is None else arms, list(seeds))

    return act


def shared_loss() -> Objective:
    """One loss under two names."""
    loss = SoftTargetLoss()
    return Objective(one=loss, two=loss)


def frozen() -> Any:
    """A student that was somebody's teacher."""
    return FrozenTeacher(toy_bert()).model


def saved(folder: Path) -> Path:
    """A saved student."""
    toy_bert().save_pretrained(folder)
    return folder


nan = float("nan")
BATCH = text_inputs()
ARGUMENTS = (
    Case("learning rate NaN", argument(learning_rate=nan), ValueError, r"learning_rate must be a finite .*got nan"),
    Case("no rows in a batch", argument(per_device_train_batch_size=0), ValueError, r"train_batch_size must be.*got 0"),
    Case("no accumulation steps", argument(gradient_accumulation_steps=0), ValueError, r"accumulation_steps must be 1"),
    Case("no steps", argument(max_steps=0), ValueError, r"max_steps must be above 0, or -1.*num_train_epochs"),
    Case("no epochs", argument(max_steps=-1, num_train_epochs=0), ValueError, r"epochs must be above 0: nothing would"),
    Case("clipping at NaN", argument(max_grad_norm=nan), ValueError, r"max_grad_norm must be 0 .no clipping. or above"),
    Case("smoothing of 2", argument(label_smoothing_factor=2.0), ValueError, r"share of the target in \[0, 1\)"),
    Case("saving every 0 steps", argument(save_strategy="steps", save_steps=0), ValueError, r"nothing would be saved"),
    Case("best of nothing", argument(load_best_model_at_end=True), ValueError, r"off without evaluation.*eval_strategy"),
    Case("fp16 on a CPU", argument(fp16=True), ValueError, r"fp16 must be off without a GPU.*Set bf16=True"),
    Case("unknown precision", argument(teacher_dtype="fp16"), ValueError, r"one of float32, bfloat16, float16, auto"),
    Case("perturbation NaN", argument(embedding_perturbation=nan), ValueError, r"must be 0 \(off\) or above, got nan"),
    Case("reentrant checkpointing", argument(activation_checkpointing=True, activation_checkpointing_kwargs={
        "use_reentrant": True}), ValueError, r"silently wrong gradients.*'use_reentrant': False"),
    Case("output into a file", lambda here: arguments(Path(__file__)), ValueError, r"must be a folder.*another place"),
    Case("two kinds of mixing", argument(uncertainty_mixup=True, mixup_alpha=0.2), ValueError, r"Set one of them"),
)
OBJECTIVES = (
    Case("empty objective", objective({}), ValueError, r"needs at least one loss.*preset's name"),
    Case("misspelt preset", objective("tinibert"), ValueError, r"unknown preset 'tinibert'.*nearest first: tinybert"),
    Case("unknown option", objective({"preset": "kd", "tau": 2}), ValueError, r"takes no 'tau'. Accepted.*temperature"),
    Case("negative weight", objective(lambda: Objective(task=TaskLoss(weight=-1))), ValueError, r"0 or above, got -1"),
    Case("weight in quotes", objective({"kd": {"loss": "SoftTargetLoss", "weight": "0.5"}}), TypeError, r"got '0.5'"),
    Case("temperature 0", objective({"kd": {"loss": "SoftTargetLoss", "temperature": 0}}), ValueError, r"above 0, got 0"),
    Case("term outside its folder", objective({"../x": {"loss": "TaskLoss"}}), ValueError, r"'../x' is not called by"),
    Case("term of torch's own", objective({"keys": {"loss": "TaskLoss"}}), ValueError, r"can be called 'keys'.*Rename"),
    Case("one loss twice", objective(shared_loss), ValueError, r"one object under two names.*Make two losses"),
    Case("a function for a loss", objective({"x": {"loss": "os:system"}}), ValueError, r"is not a DistillationLoss"),
    Case("a path for a loss", objective({"x": {"loss": "./my.py:MyLoss"}}), ValueError, r"'package.module:Class'.*'.py'"),
    Case("layer that is not there", objective(lambda: Objective(h=HiddenStateLoss([(1, 9)]))), ValueError,
         r"teacher layer 9.*What to do: write a layer from 0 to 4"),
    Case("misspelt layer map", objective(lambda: Objective(h=HiddenStateLoss("unifrom"))), ValueError, r"one of 'uniform'"),
    Case("all weights 0", lambda here: train(here, Objective(task=TaskLoss(weight=0.0))), ValueError, r"Give one of them"),
)
ROWS = (
    Case("label too large", lambda h: train(h, rows=first(labels=3)), ValueError, r"0 to 2 .*got \[3\] in row .*num_labels"),
    Case("label -1", lambda h: train(h, rows=changed(labels=-1)), ValueError, r"or -100 to leave a row out; got \[-1\]"),
    Case("label of a word", lambda h: train(h, rows=changed(labels="yes")), ValueError, r"'yes' as 'labels'.*map their"),
    Case("no label", lambda h: train(h, rows=changed(labels=None)), ValueError, r"has None as 'labels'.*Filter such rows"),
    Case("labels of floats", lambda h: train(h, rows=changed(labels=0.5)), TypeError, r"float32.*integers, or.*num_labels=1"),
    Case("several labels as integers", lambda h: train(h, rows=changed(labels=[0, 1, 1])), TypeError, r"must be floats"),
    Case("label column misnamed", lambda h: train(h, rows=text_rows().rename_column("labels", "target")), ValueError,
         r"needs labels in the batch, which holds.*rename_column"),
    Case("number NaN", lambda h: train(h, student=toy_bert(classes=1), teacher=toy_bert(4, classes=1, seed=1),
         rows=changed(labels=nan)), ValueError, r"labels hold NaN or inf in rows .*filter them out"),
    Case("token out of the vocabulary", lambda h: train(h, rows=first(input_ids=[70], attention_mask=[1])), ValueError,
         r"input_ids must be 0 to 63.*got \[70\].*resize_token_embeddings"),
    Case("token type out of the table", lambda h: train(h, rows=Dataset.from_list([
        {**row, "token_type_ids": [2] * len(row["input_ids"])} for row in text_rows()])), ValueError,
         r"token_type_ids must be 0 to 1"),
    Case("row without a token", lambda h: train(h, rows=first(input_ids=[], attention_mask=[])), (ValueError), r"no token in"),
    Case("all rows masked", lambda h: train(h, "minilm", rows=Dataset.from_list([
        {**row, "attention_mask": [0] * len(row["input_ids"])} for row in text_rows()])), ValueError, r"label them -100"),
    Case("mask of another length", lambda h: train(h, rows=first(attention_mask=[1] * 30)), ValueError, r"Pad both with one"),
    Case("rows too long", lambda h: train(h, rows=text_rows(tokens=(70, 80))), ValueError, r"64 positions.*truncation=True"),
    Case("text that is no tokens", lambda h: train(h, rows=Dataset.from_list([{"text": "a", "labels": 0}] * 8)), ValueError,
         r"reads input_ids.*Tokenize texts"),
    Case("pixels NaN", lambda h: train(h, **pictures(nan)), ValueError, r"pixel_values hold NaN.*how these rows were"),
    Case("pixels not normalised", lambda h: train(h, **pictures(255)), TypeError, r"whole numbers .*model's image processor"),
    Case("no rows", argument(rows=text_rows().select([])), ValueError, r"train_dataset is empty.*split's name"),
    Case("all splits", argument(rows=DatasetDict(train=text_rows())), TypeError, r"splits \['train'\].*pass one split"),
)
MODELS = (
    Case("student by name", argument(student="bert-base-uncased"), TypeError, r"got 'bert-base-uncased'.*from_pretrained"),
    Case("frozen student", lambda h: train(h, student=frozen()), ValueError, r"requires a gradient.*requires_grad_\(True\)"),
    Case("student without a head", lambda h: train(h, student=toy_bert(head="Model")), ValueError, r"with the head of its"),
    Case("teacher of images for texts", lambda h: train(h, teacher=toy_vit(4)), ValueError, r"teacher reads pixel_values"),
    Case("teacher of more classes", argument(teacher=toy_bert(4, classes=5)), ValueError, r"3 \(student\) and 5 .*label_map"),
    Case("teacher that is the student", lambda h: trainer_of(h, student=(m := toy_bert()), teacher=m), ValueError,
         r"shares 41 parameters.*Pass two models"),
    Case("teacher that is not there", argument(teacher="./no/such/folder"), FileNotFoundError, r"no folder here.*user/name"),
    Case("teacher without a name", argument(teacher=""), ValueError, r"named by an empty text. Give a folder"),
    Case("teacher with a login in its name", argument(teacher="https://me:secret@huggingface.co/a/b"), FileNotFoundError,
         r"'https://huggingface.co/a/b' is no folder"),
    Case("folder without a teacher", teacher(Path.mkdir), FileNotFoundError, r"holds no config.json, but nothing"),
    Case("adapter for a teacher", teacher(lambda f: with_lora(toy_bert(4), ["query"]).save_pretrained(f)), ValueError,
         r"adapter of PEFT.*merge_and_unload"),
    Case("teacher cut off", teacher(cut), ValueError, r"weights of the teacher.*copy it again"),
    Case("teacher without weights", teacher(lambda f: toy_bert(4).config.save_pretrained(f)), FileNotFoundError, r"is whole"),
    Case("teacher without a trained head", teacher(lambda f: toy_bert(4, head="Model").save_pretrained(f)), ValueError,
         r"no trained weights for classifier.bias.*Fine-tune the teacher"),
    Case("label map of fractions", lambda h: FrozenTeacher(toy_bert(), label_map=[0.5, 1, 2]), ValueError, r"Entry k is the"),
    Case("student of no layers", lambda h: student_from(toy_bert(), num_layers=0), ValueError, r"between 1 and the teacher's 2"),
    Case("width in quotes", lambda h: student_from(toy_bert(), hidden_size="8"), TypeError, r"whole numbers.*got '8'.*Write 6"),
    Case("width that heads cannot share", lambda h: student_from(toy_bert(), hidden_size=7), ValueError, r"Nearest num_att"),
)
