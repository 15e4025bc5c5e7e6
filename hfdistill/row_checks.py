"""Rows that no model can learn from, refused when they become a batch: before the device sees them, and by name.

On a GPU a label or token id out of range ends the process with "device-side assert triggered" and nothing else. Here
the batch is still on the CPU, in the data loader's own process, and looking costs microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy, base_model
from hfdistill.images.pixels import explained_shapes
from hfdistill.losses.logits import LogitLoss
from hfdistill.objective import Objective
from hfdistill.representations import IGNORE_INDEX, TEACHER_PREFIX
from hfdistill.schedules import Constant
from hfdistill.teachers import FrozenTeacher

Labels = Literal["needed", "read", "unread"]
"""Whether a batch must hold labels, or they are looked at where it does, or nobody reads them as classes."""

_CLASSES = ("ForSequenceClassification", "ForImageClassification", "ForTokenClassification")
_TOKENS = ("ForMaskedLM", "ForCausalLM")
_MISFIT = re.compile(r"size of (the )?tensor|out of bounds|device-side assert")
"""How torch tells that a row and a table of positions do not go together."""
_IDS = {"input_ids": "vocab_size", "token_type_ids": "type_vocab_size"}
_CONTENTS = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")


@dataclass(frozen=True)
class RowLimits:
    """What the rows of a run may hold.

    Args:
        contents: which of the student's inputs hold what it is to look at: tokens, pixels.
        ids: name of an input -> how many ids the models know; the smaller table where both read it.
        head: the kind of the student's head; see Anatomy.
        classes: number of classes that a label may name; 1: any number.
        label_name: what the labels are called.
        labels: who reads them.
        finite: whether NaN and inf are refused; else the trainer skips what they spoil.
        exclusive: name of a term of the objective in which classes exclude each other; "" where there is none.
    """

    contents: tuple[str, ...]
    ids: Mapping[str, int]
    head: str
    classes: int
    label_name: str
    labels: Labels
    finite: bool = True
    exclusive: str = ""

    @classmethod
    def of(
        cls,
        student: nn.Module,
        teacher: object,
        objective: Objective,
        label_name: str,
        training: bool = True,
        own_function: bool = False,
        finite: bool = True,
    ) -> RowLimits:
        """Read the limits off the models' configurations and the objective.

        Args:
            student: the student.
            teacher: a FrozenTeacher; of others nothing is known.
            objective: what the student learns.
            label_name: what the labels are called.
            training: or evaluation, which looks at labels where they are there.
            own_function: whether the Trainer has a `compute_loss_func`, for which labels may mean anything.
            finite: see RowLimits.
        """
        anatomy = Anatomy.of(student)
        classes = anatomy.vocabulary if anatomy.head in _TOKENS else anatomy.classes
        ours, theirs = _tables(student), _tables(teacher.model) if isinstance(teacher, FrozenTeacher) else {}
        own = {f"{TEACHER_PREFIX}{name}": size for name, size in theirs.items()}
        known = {name: min(sizes) for name in _IDS if (sizes := [t[name] for t in (ours, theirs) if name in t])}
        labels: Labels = "unread" if own_function else _readers(objective) if training else "read"
        exclusive = _exclusive(objective) if training and not own_function else ""
        ids = {**known, **own}
        return cls(contents_of(anatomy), ids, anatomy.head, classes, label_name, labels, finite, exclusive)


def _readers(objective: Objective) -> Labels:
    used = [objective[name] for name in objective if objective[name].weight != Constant(0.0)]
    if any(term.labels_alone for term in used):
        return "needed"
    return "read" if any(term.reads_classes for term in used) else "unread"


def _exclusive(objective: Objective) -> str:
    terms = ((name, objective[name]) for name in objective)
    return next((name for name, term in terms if isinstance(term, LogitLoss) and term.exclusive), "")


@dataclass(frozen=True)
class CheckedRows:
    """A collator that refuses batches which no model can take, naming the rows.

    Args:
        collator: makes the batches.
        limits: of the run.
    """

    collator: Callable[[list[Any]], Any]
    limits: RowLimits

    def __call__(self, rows: list[Any]) -> Any:
        """One batch.

        Raises:
            ValueError: a label, token id or number that is none; rows without a token; labels missing or of a kind
                that the head does not take.
            TypeError: numbers of a kind that no model takes.
        """
        try:
            batch = self.collator(rows)
        except (TypeError, ValueError, RuntimeError) as error:
            if reason := _unlabelled(rows):
                raise ValueError(f"{reason} Filter such rows out, or map their labels to whole numbers.") from error
            raise
        if isinstance(batch, Mapping):
            check_contents(batch, self.limits.contents, "student")
            tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor) and value.numel()}
            self._check_numbers(tensors)
            for prefix in ("", TEACHER_PREFIX):
                _check_mask(tensors, prefix, self.limits.label_name)
            self._check_labels(tensors, sorted(batch))
        return batch

    def _check_numbers(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in tensors.items():
            if name in self.limits.ids:
                _check_ids(name, value, self.limits.ids[name])
            elif name.endswith("pixel_values") and not value.is_floating_point():
                raise TypeError(
                    f"{name} are whole numbers ({value.dtype}) from {int(value.min())} to {int(value.max())}, so they "
                    "were not normalised: the models would see other images than they were trained on. Use the "
                    "model's image processor."
                )
            elif self.limits.finite and value.is_floating_point() and not value.sum().isfinite():
                bad = value.isnan() | value.isposinf()  # -inf is how classes are switched off
                if bad.any():
                    raise ValueError(
                        f"{name} hold NaN or inf in {_rows(bad)}. The loss would be NaN and the student with it. Look "
                        "at how these rows were prepared, and filter them out."
                    )

    def _check_labels(self, tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
        limits, labels = self.limits, tensors.get(self.limits.label_name)
        if limits.labels == "unread" or limits.head not in (*_CLASSES, *_TOKENS):
            return
        if labels is None and limits.labels == "needed":
            raise ValueError(
                f"TaskLoss needs labels in the batch, which holds {list(names)} and no {limits.label_name!r}. Columns "
                "that no model reads are dropped before: rename yours (dataset.rename_column('target', 'labels')). "
                "Without labels a student can still learn from its teacher: leave 'task' out of the objective."
            )
        if labels is None or limits.classes <= 1:
            return
        _check_kind(labels, limits)
        if not labels.is_floating_point():
            bad = ((labels < 0) | (labels >= limits.classes)) & (labels != IGNORE_INDEX)
            if bad.any():
                raise ValueError(
                    f"labels must be 0 to {limits.classes - 1} ({limits.classes} classes of the student), or "
                    f"{IGNORE_INDEX} to leave a row out; got {sorted(set(labels[bad].tolist()))[:6]} in {_rows(bad)}. "
                    "Count the classes from 0, and load the student with num_labels=... of the data."
                )


def contents_of(model: Anatomy) -> tuple[str, ...]:
    """The inputs of a model that hold what it looks at: tokens, pixels or sound; none where these are not known."""
    return tuple(name for name in _CONTENTS if name in model.input_names)


def check_contents(batch: Mapping[str, Any], contents: Sequence[str], role: str) -> None:
    """Refuse a batch that holds nothing of what a model looks at.

    Args:
        batch: as the collator made it.
        contents: see contents_of.
        role: "student" or "teacher".

    Raises:
        ValueError: none of them is there, or not a single token.
    """
    given = [batch[name] for name in contents if name in batch]
    if contents and not given:
        raise ValueError(
            f"the {role} reads {' or '.join(contents)}, and the batch holds {sorted(batch)}. Tokenize texts and "
            "prepare images before training (dataset.map), or in the data collator with remove_unused_columns=False."
        )
    if any(isinstance(value, Tensor) and not value.numel() for value in given):
        raise ValueError("all rows of the batch are empty: there is no token in any. Filter empty texts out.")


def _tables(model: nn.Module) -> dict[str, int]:
    """Input -> size of the table that its ids look up."""
    config: Any = base_model(model).config
    told, read = config.get_text_config().to_dict(), Anatomy.of(model).input_names
    return {name: told[key] for name, key in _IDS.items() if name in read and told.get(key)}


def _check_ids(name: str, ids: Tensor, known: int) -> None:
    if ids.is_floating_point():
        raise TypeError(
            f"{name} must be whole numbers, got {ids.dtype}. An id is a row of a table; an empty list among the rows "
            "makes the collator guess floats. Filter empty rows out, or cast the column."
        )
    bad = (ids < 0) | (ids >= known)
    if bad.any():
        raise ValueError(
            f"{name} must be 0 to {known - 1}, as many as the models' embeddings know; got "
            f"{sorted(set(ids[bad].tolist()))[:6]} in {_rows(bad)}. Tokenize with the models' own tokenizer, or "
            "resize the embeddings (resize_token_embeddings) after adding tokens."
        )


def _check_mask(tensors: Mapping[str, Tensor], prefix: str, label_name: str) -> None:
    ids, mask = tensors.get(f"{prefix}input_ids"), tensors.get(f"{prefix}attention_mask")
    if ids is None or mask is None or mask.dim() != 2 or ids.dim() != 2:
        return
    if ids.shape != mask.shape:
        raise ValueError(
            f"{prefix}attention_mask {tuple(mask.shape)} must have the shape of {prefix}input_ids {tuple(ids.shape)}: "
            "it says which tokens are real. Pad both with one collator (DataCollatorWithPadding)."
        )
    empty, labels = mask.sum(dim=1) == 0, tensors.get(label_name)
    if labels is not None and len(labels) == len(empty):
        empty = empty & (labels != IGNORE_INDEX).reshape(len(empty), -1).any(dim=1)  # others are padding of a batch
    if empty.any() and (prefix or labels is not None):
        raise ValueError(
            f"there is no token in {_rows(empty)} ({prefix}attention_mask is 0), but a label: what a model answers to "
            "nothing is noise. Filter empty texts out, or label them -100."
        )


def _check_kind(labels: Tensor, limits: RowLimits) -> None:
    several = labels.dim() == 2 and labels.shape[1] == limits.classes and limits.head != "ForTokenClassification"
    if labels.dtype == torch.bool or (labels.is_floating_point() and not several):
        raise TypeError(
            f"labels must be whole numbers for a head of {limits.classes} classes, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}. The head would take them for something else; cast the column to integers, or "
            "load the student with num_labels=1 to learn numbers."
        )
    if several and not labels.is_floating_point() and limits.head in _CLASSES:
        raise TypeError(
            f"labels {tuple(labels.shape)} of {labels.dtype} name several classes per row, which must be floats (0.0 "
            "or 1.0): binary cross-entropy is learnt from them. Cast the column, and load the student with "
            "problem_type='multi_label_classification'."
        )
    if several and limits.exclusive and bool(((labels == 0) | (labels == 1)).all()) and (labels.sum(dim=1) != 1).any():
        raise ValueError(
            f"labels {tuple(labels.shape)} name several classes of a row, and in the objective's term "
            f"{limits.exclusive!r} classes exclude each other (a softmax): the student would learn to choose one. Use "
            "SoftTargetLoss(divergence='mse'), which compares each class by itself."
        )


def _unlabelled(rows: Sequence[Any]) -> str:
    """What is wrong with rows of which no tensor could be made; "" where it is not the labels."""
    for at, row in enumerate(rows):
        for name, value in row.items() if isinstance(row, Mapping) else ():
            if name.startswith("label") and (value is None or isinstance(value, str)):
                return f"row {at} of the batch has {value!r} as {name!r}, of which no tensor can be made."
    return ""


def _rows(bad: Tensor) -> str:
    rows = bad.reshape(len(bad), -1).any(dim=1).nonzero().flatten().tolist()
    return f"{'row' if len(rows) == 1 else 'rows'} {', '.join(map(str, rows[:8]))} of the batch"


@contextmanager
def explained_inputs(model: nn.Module, inputs: Mapping[str, Any], role: str) -> Iterator[None]:
    """Within this context a model's refusal of rows that are too long for it, or of images, says what to do.

    Args:
        model: whose forward pass is made.
        inputs: that it is given.
        role: "student" or "teacher".

    Raises:
        ValueError: the pass failed, and the rows are longer than the model has positions; or see explained_shapes.
    """
    try:
        with explained_shapes(model, inputs, role):
            yield
    except (RuntimeError, IndexError) as error:
        config: Any = base_model(model).config
        ids, positions = inputs.get("input_ids"), config.to_dict().get("max_position_embeddings", 0) or 0
        misfit = isinstance(error, IndexError) or _MISFIT.search(str(error))  # not memory, nor a lost process
        if not misfit or not isinstance(ids, Tensor) or not 0 < positions < ids.shape[-1] + 2:  # RoBERTa begins at 2
            raise
        raise ValueError(
            f"the {role} has {positions} positions, got rows of {ids.shape[-1]} tokens, and failed on them: {error} "
            f"Truncate when tokenizing (truncation=True, max_length={positions} or less), or take a {role} for longer "
            "texts."
        ) from error
