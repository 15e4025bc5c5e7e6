"""Both models' answers against the labels: how good the teacher is, and whether its classes stand in this order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hfdistill.checks.examination import Examination
from hfdistill.checks.findings import Finding, Findings
from hfdistill.losses.logits import next_labels
from hfdistill.representations import IGNORE_INDEX, Needs
from hfdistill.teachers import FrozenTeacher

Array = npt.NDArray[Any]
Kind = Literal["classes", "several labels", "numbers"]

LANGUAGE_MODELS = ("ForCausalLM", "ForMaskedLM")
"""Heads whose classes are tokens."""
CHANCE_OF_ERROR = 1e-3
"""That an order of the classes is called better than the teacher's own though both are equally good."""
LARGER_BY = 0.1
"""Accuracy that another order of the classes must at least gain to be worth a word."""


@dataclass(frozen=True)
class Answers:
    """What one model said of the labelled rows or tokens.

    Args:
        kind: class indices, yes or no for each of several labels, or numbers.
        said: (items,) its predictions.
        true: (items,) the labels.
        classes: how many there are.
    """

    kind: Kind
    said: Array
    true: Array
    classes: int

    @property
    def quality(self) -> float:
        """Accuracy, or for numbers Pearson's correlation; 0 where a side never varies."""
        if self.kind != "numbers":
            return float((self.said == self.true).mean())
        varies = self.said.std() > 0 and self.true.std() > 0
        return float(np.corrcoef(self.said, self.true)[0, 1]) if varies else 0.0

    @property
    def explained(self) -> float:
        """R²: the share of the labels' variance that the numbers account for; below 0 they are worse than the mean."""
        spread = float(((self.true - self.true.mean()) ** 2).sum())
        return 1.0 - float(((self.true - self.said) ** 2).sum()) / spread if spread > 0 else 0.0

    @property
    def chance(self) -> float:
        """Accuracy of always naming the commonest label; 0, no correlation, for numbers."""
        if self.kind == "numbers":
            return 0.0
        return float(np.unique(self.true, return_counts=True)[1].max()) / len(self.true)

    @property
    def doubt(self) -> float:
        """Standard error of the quality of a model that knows nothing, for this many items."""
        spread = 1.0 if self.kind == "numbers" else self.chance * (1.0 - self.chance)
        return math.sqrt(spread / len(self.true))


def teacher_answers(examination: Examination) -> tuple[Answers, Answers | None] | None:
    """The teacher's answers and the student's, on all batches; None where no label can be compared with an answer."""
    both: tuple[list[Answers], list[Answers]] = ([], [])
    for inputs in examination.batches:
        batch = examination.batch(inputs)
        own = batch.teacher_labels is not None
        logits = examination.taught(inputs, Needs(logits=True)).logits, examination.answered(inputs)
        labels = (batch.teacher_labels if own else batch.labels), batch.labels
        masks = (batch.teacher_mask if own else batch.mask), batch.mask
        causal = examination.anatomy.head == "ForCausalLM"
        for side, said, true, mask in zip(both, logits, labels, masks, strict=True):
            if (found := _answers(said, true, mask, causal)) is not None:
                side.append(found)
    teacher, student = (_joined(side) for side in both)
    return None if teacher is None else (teacher, student)


def teacher_quality(teacher: Answers, student: Answers | None, split: str) -> Finding:
    """Whether the teacher knows more than nothing, and more than the student.

    Args:
        teacher: its answers.
        student: the student's, before training.
        split: which data they are of.
    """
    count, own = len(teacher.true), teacher.quality
    theirs = None if student is None else student.quality
    figures = {
        "items": count,
        "teacher": own,
        "student": theirs,
        "chance": teacher.chance,
        "measure": _measure(teacher),
    }
    beside = "" if theirs is None else f", the student's before training {theirs:.3f}"
    if teacher.kind == "numbers":
        figures["r2"] = teacher.explained
        beside = f" (R² {teacher.explained:.3f}){beside}"
    else:
        beside = f", that of always naming the commonest label {teacher.chance:.3f}{beside}"
    told = f"the teacher's {_measure(teacher)} on {count} labels of the {split} data is {own:.3f}{beside}."
    if own - teacher.chance <= 2 * teacher.doubt:
        worse = "It knows no more than chance, as far as these rows tell: "
        advice = (
            "Fine-tune the teacher on this task, or look at what it is given: label order, tokenizer, inputs. On "
            "rare labels its soft answers may still teach; then go by another metric."
        )
    elif theirs is not None and theirs - own > 0.5 / math.sqrt(count):
        worse = "The student knows more than it: "
        advice = "Use a better teacher, or train longer before distilling; from this one the student may unlearn."
    elif teacher.kind == "numbers" and teacher.explained <= 0:
        worse = "Its numbers are on another scale: "
        advice = "Scale the labels as they were when the teacher was trained, or choose a loss that ignores the scale."
    else:
        return Finding("teacher's quality", "ok", told, figures=figures)
    return Finding("teacher's quality", "warning", worse + told, advice, figures)


def label_order(examination: Examination, teacher: Answers) -> Finding:
    """Whether the teacher's classes in another order fit the labels much better than in its own.

    Of K! orders the best one fits some rows by luck: the gain must be beyond what a bound on all of them (Hoeffding)
    allows for. Compared is with the better of the teacher's own order and of always naming the commonest label.

    Args:
        examination: for the label map that the teacher has.
        teacher: its answers.
    """
    if teacher.kind != "classes" or examination.anatomy.head in LANGUAGE_MODELS:
        return not_applicable("label order", "the labels are no classes that could stand in another order")
    counts = np.zeros((teacher.classes, teacher.classes))
    np.add.at(counts, (teacher.true, teacher.said), 1)
    favoured = counts + np.eye(teacher.classes) / (teacher.classes + 1)  # among equals the class stays where it is
    _, order = linear_sum_assignment(-favoured)
    rows, own, best = len(teacher.true), teacher.quality, float(counts[np.arange(teacher.classes), order].sum())
    best /= rows
    luck = math.sqrt((math.lgamma(teacher.classes + 1) - math.log(CHANCE_OF_ERROR)) / (2 * rows))
    figures = {"rows": rows, "accuracy": own, "best_accuracy": best, "luck": luck, "order": order.tolist()}
    gain = best - max(own, teacher.chance)
    if gain <= LARGER_BY:
        message = f"no other order of the {teacher.classes} classes fits {rows} labels clearly better ({best:.3f})"
        return Finding("label order", "ok", f"{message} than the teacher's own ({own:.3f}).", figures=figures)
    if gain <= luck:
        needed = math.ceil(rows * (luck / gain) ** 2)
        message = f"another order of the {teacher.classes} classes fits {rows} labels better ({best:.3f}) than the "
        message += f"teacher's own ({own:.3f}), but so few may do so by luck."
        return Finding(
            "label order", "note", message, f"Look at {needed} or more: examine(trainer, rows=...).", figures
        )
    label_map = _composed(examination, order.tolist())
    return Finding(
        "label order",
        "error",
        f"the teacher's classes seem to stand in another order than the labels: its accuracy on {rows} labels is "
        f"{own:.3f} as they are and {best:.3f} reordered. The student would learn classes from wrong ones.",
        f"Pass teacher=FrozenTeacher(teacher, label_map={label_map}), or bring the data into the teacher's order.",
        {**figures, "label_map": label_map},
    )


def not_applicable(check: str, reason: str) -> Finding:
    """The note that a check has nothing to look at."""
    return Finding(check, "note", f"not applicable: {reason}.")


def examined_answers(examination: Examination) -> Findings:
    """The teacher's quality and the order of its labels."""
    if examination.teacher is None:
        return Findings([not_applicable("teacher's quality", "there is no teacher")])
    found = teacher_answers(examination)
    if found is None:
        reason = "the batches have no labels, or none that the logits answer one by one"
        return Findings([not_applicable(check, reason) for check in ("teacher's quality", "label order")])
    teacher, student = found
    if student is not None and teacher.classes != student.classes:
        reason = f"the teacher has {teacher.classes} classes of its own, the student {student.classes}"
        return Findings([not_applicable(check, reason) for check in ("teacher's quality", "label order")])
    return Findings([teacher_quality(teacher, student, examination.split), label_order(examination, teacher)])


def _answers(logits: Tensor | None, labels: Tensor | None, mask: Tensor | None, causal: bool) -> Answers | None:
    if logits is None or labels is None:
        return None
    if logits.shape[-1] == 1 and labels.numel() == logits.numel():
        return Answers("numbers", _array(logits.float()), _array(labels.float()), 1)
    if labels.is_floating_point() and labels.shape == logits.shape:
        return Answers("several labels", _array(logits > 0), _array(labels > 0.5), 2)
    if labels.is_floating_point() or labels.shape != logits.shape[:-1]:
        return None
    labels = next_labels(labels, mask) if causal else labels
    kept = labels != IGNORE_INDEX
    return Answers("classes", _array(logits.argmax(-1)[kept]), _array(labels[kept]), logits.shape[-1])


def _array(values: Tensor) -> Array:
    return np.asarray(values.detach().flatten().cpu())


def _joined(parts: Sequence[Answers]) -> Answers | None:
    parts = [part for part in parts if len(part.true)]
    if not parts or len({(part.kind, part.classes) for part in parts}) > 1:
        return None
    said, true = np.concatenate([part.said for part in parts]), np.concatenate([part.true for part in parts])
    return Answers(parts[0].kind, said, true, parts[0].classes)


def _measure(answers: Answers) -> str:
    return "correlation" if answers.kind == "numbers" else "accuracy"


def _composed(examination: Examination, order: list[int]) -> list[int]:
    """The order in the teacher's own classes, which it may have been given in another order already."""
    teacher = examination.teacher
    given: Tensor | None = teacher.label_map if isinstance(teacher, FrozenTeacher) else None
    return order if given is None else [int(given[index]) for index in order]
