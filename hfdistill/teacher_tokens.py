"""A teacher with inputs of its own: columns with the prefix `teacher_` are its tokens, or images, of the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset

from hfdistill.representations import CACHED, ROW_KEYS, SAMPLE_INDEX, TEACHER_PREFIX


class TeacherTokensCollator:
    """Pads the student's and the teacher's columns of a batch, each with a collator of its own.

    ::

        TeacherTokensCollator(DataCollatorWithPadding(tokenizer), DataCollatorWithPadding(teacher_tokenizer))

    Args:
        student: collates rows of the student's columns.
        teacher: collates rows of the teacher's columns, whose names it sees without the prefix `teacher_`.
    """

    def __init__(
        self, student: Callable[[list[Any]], Mapping[str, Any]], teacher: Callable[[list[Any]], Mapping[str, Any]]
    ) -> None:
        self.student = student
        self.teacher = teacher

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch of rows that hold both models' columns.

        Raises:
            ValueError: no column begins with `teacher_`.
        """
        theirs = [own_inputs(row) for row in rows]
        if not any(theirs):
            raise ValueError(
                f"no column begins with {TEACHER_PREFIX!r}, got {sorted(rows[0])}. The teacher has another tokenizer; "
                f"tokenize each text with it too, and store the result as {TEACHER_PREFIX}input_ids, "
                f"{TEACHER_PREFIX}attention_mask."
            )
        ours = [{name: value for name, value in row.items() if not name.startswith(TEACHER_PREFIX)} for row in rows]
        batch = {f"{TEACHER_PREFIX}{name}": value for name, value in self.teacher(theirs).items()}
        return {**self.student(ours), **batch}


def own_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that only the teacher is given, under the names of its own `forward`."""
    return {
        name.removeprefix(TEACHER_PREFIX): value for name, value in inputs.items() if name.startswith(TEACHER_PREFIX)
    }


def without_teachers(inputs: Mapping[str, Any], ours: Sequence[str], theirs: Sequence[str]) -> dict[str, Any]:
    """The student's share of a batch: without what only the teacher takes or showed, and without the rows' numbers.

    Args:
        inputs: the batch.
        ours: argument names of the student's `forward`.
        theirs: those of the teacher's.
    """
    unknown = {SAMPLE_INDEX, CACHED, ROW_KEYS, *theirs} - set(ours)
    names = [name for name in inputs if name not in unknown and not name.startswith(TEACHER_PREFIX)]
    return {name: inputs[name] for name in names}


def teacher_columns(theirs: Sequence[str]) -> tuple[str, ...]:
    """Columns of a data set that a teacher with these arguments may be given."""
    return (*theirs, *(f"{TEACHER_PREFIX}{name}" for name in theirs))


def holds_own(dataset: object, name: str) -> bool:
    """Whether a data set is known to hold a column of the teacher's own for its argument `name`."""
    return isinstance(dataset, Dataset | IterableDataset) and TEACHER_PREFIX + name in (dataset.column_names or ())
