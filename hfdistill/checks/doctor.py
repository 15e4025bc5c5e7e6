"""The pre-flight doctor: everything that can be told of a run before it starts, on a few batches of its own data."""

from __future__ import annotations

from collections.abc import Callable

from hfdistill.checks.answers import examined_answers
from hfdistill.checks.examination import Examination, undisturbed
from hfdistill.checks.findings import Finding, Findings
from hfdistill.checks.layers import examined_layers
from hfdistill.checks.memory import examined_memory
from hfdistill.checks.preflight import preflight
from hfdistill.checks.reading import examined_reading
from hfdistill.checks.steadiness import examined_teacher
from hfdistill.checks.terms import examined_terms
from hfdistill.trainer import DistillationTrainer

_EXAMINED: dict[str, Callable[[Examination], Findings]] = {
    "reading": examined_reading,
    "teacher": examined_teacher,
    "answers": examined_answers,
    "layers": examined_layers,
    "terms": examined_terms,
    "memory": examined_memory,
}
"""What is looked at, in this order: what breaks a forward pass first."""

_FAILURES = (ValueError, TypeError, RuntimeError, IndexError, KeyError)
"""What broken rows and models raise when they are put to work."""


def examine(trainer: DistillationTrainer, rows: int = 256) -> Findings:
    """Look at a run before it starts: data, teacher, objective and memory; see docs/checks.md for what is found.

    The trainer is left as it was, bit for bit: weights, gradients, buffers, random states, modes; nothing is attached
    and nothing is written. Only the teacher is put where it is to teach from, as training does.

    Args:
        trainer: not training now.
        rows: labelled rows to look at, at least; more of them tell more about the order of many classes.

    Raises:
        ValueError: the trainer has no data, or `rows` is below 1.
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}: the checks are made on batches of the data.")
    if trainer.train_dataset is None and trainer.eval_dataset is None:
        raise ValueError("there is nothing to examine: the trainer has no train_dataset. Pass train_dataset=...")
    names = trainer.label_names or ["labels"]
    found = preflight(trainer.args, trainer.student, trainer.teacher, trainer.train_dataset, names)
    if not all(parameter.numel() for parameter in trainer.student.parameters()):
        told = "the student's parameters are cut into shards (ZeRO-3), so no pass of it can be made alone."
        return Findings([*found, Finding("rows", "note", told, "Examine it in one process, without DeepSpeed.")])
    with undisturbed(trainer):
        try:
            examination = Examination.of(trainer, rows)
        except _FAILURES as error:
            return Findings([*found, _failure("rows", error)])
        for name, check in _EXAMINED.items():
            found += _made(name, check, examination)
    said = {(one.check, str(one)): one for one in reversed(found)}  # what columns and batches both show counts once
    return Findings(one for one in found if said[one.check, str(one)] is one)


def _made(name: str, check: Callable[[Examination], Findings], examination: Examination) -> Findings:
    """What a check found; that it could not be made is a finding too, since training does the same as it did."""
    try:
        return check(examination)
    except _FAILURES as error:
        return Findings([_failure(name, error)])


def _failure(name: str, error: Exception) -> Finding:
    told = str(error).strip() or "no message"
    message = f"this could not be looked at: {type(error).__name__}: {told}"
    return Finding(name, "error", message, "Mend this first: training would end in the same error.")
