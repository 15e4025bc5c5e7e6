"""Broken configurations and inputs for test_broken_input.py: what a case is, and how the broken things come to be.

A case is its name, what a user does (in an empty folder), the exception, and what its message must say: what came, and
what to do. All of these were silent once, or failed with a message of some library far below.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from toy_models import toy_bert, toy_vit
from training_toys import arguments, collate, image_rows, text_rows, trainer_of

from hfdistill import Experiment, FrozenTeacher, Objective, SoftTargetLoss
from hfdistill.cli import main
from hfdistill.recipe_arguments import parse_recipe


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


def token_types(number: int) -> Dataset:
    """Eight rows of text of which every token is of this type."""
    return Dataset.from_list([{**row, "token_type_ids": [number] * len(row["input_ids"])} for row in text_rows()])


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
