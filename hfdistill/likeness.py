"""Does a student answer as its teacher does? Figures of two sets of logits, without models, labels or metrics."""

from __future__ import annotations

import numpy.typing as npt
import torch
from torch import Tensor

from hfdistill.functional import logit_mse, soft_target_kl


def agreement(student_logits: Tensor | npt.ArrayLike, teacher_logits: Tensor | npt.ArrayLike) -> float:
    """Share of rows on which both choose the same class, in [0, 1]; for one output (K = 1) Pearson's r, in [-1, 1].

    Args:
        student_logits: (B, K), or (B,) for a single output.
        teacher_logits: The same shape.

    Raises:
        ValueError: The shapes differ, there is no row, or a logit is not finite.
    """
    student, teacher = _logit_pair(student_logits, teacher_logits)
    if student.shape[1] == 1:
        return _pearson(student[:, 0], teacher[:, 0])
    return (student.argmax(dim=1) == teacher.argmax(dim=1)).double().mean().item()


def mean_kl(student_logits: Tensor | npt.ArrayLike, teacher_logits: Tensor | npt.ArrayLike) -> float:
    """Mean over rows of KL(teacher || student) at temperature 1, in nats; for K = 1 the mean squared difference.

    Args and Raises as in `agreement`.
    """
    student, teacher = _logit_pair(student_logits, teacher_logits)
    if student.shape[1] == 1:
        return logit_mse(student, teacher).item()
    return max(0.0, soft_target_kl(student, teacher, temperature=1.0).item())  # rounding may end below 0


def _logit_pair(student_logits: Tensor | npt.ArrayLike, teacher_logits: Tensor | npt.ArrayLike) -> list[Tensor]:
    given = [x.detach() if isinstance(x, Tensor) else torch.tensor(x) for x in (student_logits, teacher_logits)]
    shapes = [tuple(x.shape) for x in given]
    pair = [x.to("cpu", torch.float64) for x in given]
    pair = [x[:, None] if x.ndim == 1 else x for x in pair]  # (B,) -> (B, 1)
    if pair[0].ndim != 2 or pair[0].shape != pair[1].shape or pair[0].numel() == 0:
        raise ValueError(
            f"expected logits (B, K) of one shape and at least one row, got {shapes[0]} (student) and {shapes[1]} "
            "(teacher). They are compared row by row, class by class; give both for the same examples, in the same "
            "order, and of token logits only the valid tokens, as rows."
        )
    if not all(x.isfinite().all() for x in pair):
        raise ValueError(
            "expected finite logits, got NaN or infinity. A comparison with them means nothing: look for a run that "
            "diverged, or leave masked classes out."
        )
    return pair


def _pearson(student: Tensor, teacher: Tensor) -> float:
    if (student == student[0]).all() or (teacher == teacher[0]).all():
        return 0.0  # undefined: a constant follows nothing
    student, teacher = student - student.mean(), teacher - teacher.mean()
    correlation = float(student @ teacher / (student.norm() * teacher.norm()))
    return min(1.0, max(-1.0, correlation))
