"""What the trainer looks at when training starts, without a forward pass: what would go on in silence, and wrongly.

What cannot go on at all is refused elsewhere, by an error (`compatibility`, `pairing`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from datasets import ClassLabel, Dataset, Value
from torch import nn
from transformers import TrainingArguments

from hfdistill.anatomy import Anatomy
from hfdistill.checks.findings import Finding, Findings
from hfdistill.representations import SAMPLE_INDEX, TEACHER_PREFIX
from hfdistill.shared_base import SharedBaseTeacher
from hfdistill.teacher_precision import bfloat16_unit, fast_here, precision_of
from hfdistill.teacher_tokens import teacher_columns
from hfdistill.teachers import FrozenTeacher, Teacher

TOKEN_TYPES = "token_type_ids"  # noqa: S105  # a column, no password
_LOOKED_AT = 64
"""Rows whose token types are looked at."""


def preflight(
    args: TrainingArguments,
    student: nn.Module,
    teacher: Teacher | None,
    dataset: object,
    label_names: Sequence[str] = ("labels",),
) -> Findings:
    """What is dropped of the data, in which mode and precision the teacher is, and how large a batch really is.

    Args:
        args: of the run.
        student: the student.
        teacher: the teacher, or None.
        dataset: the training set.
        label_names: which columns are labels.
    """
    ours = Anatomy.of(student).input_names
    theirs = () if teacher is None else teacher.anatomy.input_names
    found = Findings([batch_size(args)])
    if isinstance(dataset, Dataset):
        found += one_sided(ours, None if teacher is None else theirs, dataset)
        if args.remove_unused_columns:
            known = {*ours, *teacher_columns(theirs), *label_names, "label", "label_ids", SAMPLE_INDEX}
            found += unread_columns(dataset, known | {args.length_column_name})
    if teacher is not None:
        found += [one for one in teacher_mode(teacher, student) if one.level != "ok"]
        found += teacher_running(teacher, args.device).at_least("warning")
    return found


def batch_size(args: TrainingArguments) -> Finding:
    """How many rows an update of the student sees, over all processes."""
    rows, steps, world = args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size
    figures = {"rows": rows * steps * world, "per_device": rows, "accumulation": steps, "processes": world}
    return Finding(
        "batch size",
        "note",
        f"{rows * steps * world} rows per update: {rows} per device x {steps} accumulated x {world} "
        f"process{'es' * (world > 1)}.",
        figures=figures,
    )


def one_sided(ours: Sequence[str], theirs: Sequence[str] | None, dataset: Dataset) -> Findings:
    """Inputs in the data that only one of the two models reads.

    Token types count where they say something, in the first rows at least: all of them 0 is no information.

    Args:
        ours: argument names of the student's forward.
        theirs: of the teacher's; None without a teacher.
        dataset: with the inputs as columns.
    """
    columns = set(dataset.column_names)
    if theirs is None or any(name.startswith(TEACHER_PREFIX) for name in columns):
        return Findings()  # nothing to compare with, or a teacher with inputs of its own
    names = sorted(columns & (set(ours) ^ set(theirs)) - {"labels"})
    return Findings(ignored(name, name in ours) for name in names if name != TOKEN_TYPES or _several_types(dataset))


def ignored(name: str, by_teacher: bool) -> Finding:
    """The warning that one of the models does not read an input that the other reads.

    Args:
        name: the input.
        by_teacher: the teacher is the one that ignores it.
    """
    reader, other = ("student", "teacher") if by_teacher else ("teacher", "student")
    pairs = " Pairs of texts are then one text to it, without a border." if name == TOKEN_TYPES else ""
    return Finding(
        "inputs",
        "warning",
        f"the {reader} reads {name}, the {other} ignores it, so the two see different rows.{pairs}",
        f"Choose models that read the same inputs, or make sure that the {other} can do without {name}.",
        {"input": name, "ignored_by": other},
    )


def unread_columns(dataset: Dataset, known: set[str]) -> Findings:
    """Columns that the Trainer drops since neither model reads them; text and single numbers are worth a note only.

    Args:
        dataset: what is trained on.
        known: names that somebody reads.
    """
    dropped = [name for name in dataset.column_names if name not in known]
    plain = [name for name in dropped if isinstance(dataset.features[name], Value | ClassLabel)]
    rich = [name for name in dropped if name not in plain]
    found = Findings()
    if rich:
        found.append(
            Finding(
                "columns",
                "warning",
                f"neither model reads the column{'s' * (len(rich) > 1)} {', '.join(rich)}, dropped before batches "
                "are made.",
                "Rename what is meant as an input to the argument's name in the model's forward (teacher_... where "
                "only the teacher is to read it); or keep it for your collator with remove_unused_columns=False.",
                {"columns": rich},
            )
        )
    if plain:
        message = f"neither model reads the column{'s' * (len(plain) > 1)} {', '.join(plain)}; dropped."
        found.append(Finding("columns", "note", message, figures={"columns": plain}))
    return found


def teacher_mode(teacher: Teacher, student: nn.Module) -> Findings:
    """Whether a part of the teacher is in training mode, where dropout makes it say something else each time.

    Args:
        teacher: a FrozenTeacher, which puts itself into evaluation mode as a whole if its root is not in it; or any
            other, whose models are looked for among its attributes.
        student: what it shares with the teacher changes its mode as training goes.
    """
    models, shared = models_of(teacher), set(student.modules())
    parts = [(name, part) for model in models for name, part in model.named_modules() if part not in shared]
    if not parts:
        told = "is the student's own base" if models else "holds no model here"
        return Findings([Finding("teacher's mode", "note", f"the teacher {told}, so no mode was looked at.")])
    training = [name or "all of it" for name, part in parts if part.training]
    if not training:
        return Findings([Finding("teacher's mode", "ok", "all of the teacher is in evaluation mode.")])
    mended = isinstance(teacher, FrozenTeacher) and teacher.model.training
    if mended:
        return Findings([Finding("teacher's mode", "note", "the teacher is put into evaluation mode to teach.")])
    return Findings(
        [
            Finding(
                "teacher's mode",
                "warning",
                f"{len(training)} modules of the teacher are in training mode ({training[0]} is the first): its "
                "dropout makes it teach something else each time, and its running averages move.",
                "Call eval() on the teacher's model before training.",
                {"modules": training[:20]},
            )
        ]
    )


def teacher_running(teacher: Teacher, device: torch.device) -> Findings:
    """In which precision and where the teacher runs, and whether that is fast there; nothing of what is not known.

    Args:
        teacher: of any kind.
        device: the student's.
    """
    if not isinstance(teacher, FrozenTeacher) or isinstance(teacher, SharedBaseTeacher):
        return Findings()
    place, precision = teacher.device or device, precision_of(teacher.model)
    figures = {"precision": precision, "device": str(place)}
    if not fast_here(precision, place):
        return Findings(
            [
                Finding(
                    "teacher's precision",
                    "warning",
                    f"the teacher's weights are in {precision}, and {place} has no hardware that multiplies in it: "
                    "its passes take longer than in float32.",
                    "Set teacher_dtype='auto', or 'float32'.",
                    figures,
                )
            ]
        )
    unit = bfloat16_unit(place) if precision == "float32" else ""
    more = f"; {place} also multiplies in bfloat16 ({unit}), some times faster: teacher_dtype='auto'" if unit else ""
    message = f"the teacher's weights are in {precision}, on {place}{more}."
    return Findings([Finding("teacher's precision", "note" if unit else "ok", message, figures=figures)])


def models_of(teacher: Teacher) -> list[nn.Module]:
    """The models that a teacher is, or holds as attributes.

    Args:
        teacher: of any kind.
    """
    itself = [teacher] if isinstance(teacher, nn.Module) else []
    return [*itself, *(value for value in vars(teacher).values() if isinstance(value, nn.Module))]


def _several_types(dataset: Dataset) -> bool:
    rows = dataset.with_format(None).select_columns([TOKEN_TYPES])[:_LOOKED_AT][TOKEN_TYPES]
    return any(any(row) for row in rows)
