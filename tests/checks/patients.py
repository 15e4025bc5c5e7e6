"""Runs to examine: a teacher that knows the labels, a sound run that learns from it, and the findings by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional as F
from toy_models import toy_bert
from training_toys import CLASSES, collate, text_rows, trainer_of
from transformers import PreTrainedModel

from hfdistill import Anatomy, DistillationTrainer, Finding, Findings, Needs, Representations


class KnowingTeacher:
    """Teaches the labels themselves, each as `order` says: the class k of the data stands at its place order[k].

    Args:
        order: of its classes.
        wrong: of this many rows of each batch it says the next class.
    """

    def __init__(self, order: Sequence[int] = tuple(range(CLASSES)), wrong: int = 0) -> None:
        self.anatomy = Anatomy.of(toy_bert())
        self.order = torch.tensor(order)
        self.wrong = wrong

    def prepare(self, device: torch.device) -> None:
        """Nothing to move."""

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        """Logits that name the label."""
        labels = inputs["labels"].clone()
        labels[: self.wrong] = (labels[: self.wrong] + 1) % CLASSES
        return Representations(logits=4.0 * F.one_hot(self.order[labels], CLASSES).float())


def run_of(folder: Path, objective: Any = "kd", **changes: Any) -> DistillationTrainer:
    """A run of 48 rows with a teacher that knows them, unless changed."""
    return trainer_of(folder, objective, **{"teacher": KnowingTeacher(), "rows": text_rows(48), **changes})


def of(findings: Findings, check: str) -> list[Finding]:
    """The findings of one check."""
    return [finding for finding in findings if finding.check == check]


def only(findings: Findings, check: str) -> Finding:
    """The one finding of a check."""
    (finding,) = of(findings, check)
    return finding


def answers_of(model: PreTrainedModel, rows: Dataset) -> list[int]:
    """The classes that a model names, after its head is set so that it uses all of them."""
    batch = collate([rows[at] for at in range(len(rows))])
    batch.pop("labels")
    with torch.no_grad():
        model.classifier.bias -= model(**batch).logits.mean(dim=0)
        return model(**batch).logits.argmax(-1).tolist()


def labelled(rows: Dataset, labels: Sequence[Any]) -> Dataset:
    """The rows with these labels."""
    return rows.remove_columns("labels").add_column("labels", list(labels))
