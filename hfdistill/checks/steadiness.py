"""Whether the teacher says the same of the same batch twice, and whether all of it is in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hfdistill.checks.examination import Examination
from hfdistill.checks.findings import Finding, Findings
from hfdistill.checks.preflight import teacher_mode, teacher_running
from hfdistill.representations import Needs, Representations

ROUNDING = 1e-3
"""Largest difference between two passes, relative to the largest number, that kernels of a GPU may make."""


def steadiness(examination: Examination) -> Finding:
    """Show the teacher the first batch twice.

    Args:
        examination: with a teacher.
    """
    _, needs = examination.objective.needs()
    needs = needs | Needs(logits=bool(needs.logits or not needs))
    inputs = examination.batches[0]
    first, second = (examination.taught(inputs, needs) for _ in range(2))
    pairs = list(zip(_tensors(first), _tensors(second), strict=True))
    largest = max((float((one.double() - other.double()).abs().max()) for one, other in pairs), default=0.0)
    size = max((float(one.double().abs().max()) for one, _ in pairs), default=0.0)
    relative = largest / size if size else 0.0
    figures = {"largest_difference": largest, "relative": relative}
    if largest == 0.0:
        return Finding("determinism", "ok", "two passes of the teacher over one batch are equal, bit by bit.")
    if relative <= ROUNDING:
        message = f"two passes of the teacher over one batch differ by {relative:.1e} of their size, as rounding does."
        return Finding("determinism", "note", message, figures=figures)
    return Finding(
        "determinism",
        "warning",
        f"two passes of the teacher over one batch differ by {relative:.1e} of their size: its targets are noise to "
        "that extent, and runs cannot be repeated.",
        "Switch off what is random in the teacher: dropout (eval()), sampling, augmentation of its own.",
        figures,
    )


def examined_teacher(examination: Examination) -> Findings:
    """The teacher's mode, precision and determinism."""
    if examination.teacher is None:
        return Findings([Finding("teacher", "note", "not applicable: there is no teacher.")])
    mode = teacher_mode(examination.teacher, examination.student)
    running = teacher_running(examination.teacher, examination.trainer.args.device)
    return Findings([*mode, *running, steadiness(examination)])


def _tensors(shown: Representations) -> Iterator[Tensor]:
    if shown.logits is not None:
        yield torch.nan_to_num(shown.logits, neginf=0.0)  # -inf is how classes are switched off
    if shown.output_head is not None:
        yield shown.output_head.features
    yield from shown.hidden_states.values()
    for attention in shown.attentions.values():
        kept = (attention.query, attention.key, attention.value, attention.given_probabilities)
        yield from (tensor for tensor in kept if tensor is not None)
