"""Formulas of categories: the centres of the classes in a batch, and how samples lie around them.

Everywhere labels: (B,) classes, of any number; mask: (B,), the samples that count. Centres are means over the valid
samples of a class.
"""

import torch
from torch import Tensor

from hfdistill.functional.reductions import (
    Mask,
    blanked,
    check_reduction,
    masked_mean,
    matched,
    product,
    unit,
    validity,
)


def category_inter(
    student: Tensor, teacher: Tensor, labels: Tensor, mask: Mask = None, reduction: str = "mean"
) -> Tensor:
    """Structure between categories: the angles between the centres of the classes that a batch holds.

    mean over all pairs of such classes, each with itself too, of (cos(m_k, m_l)_s - cos(m_k, m_l)_t)², with reduction
    "paper" divided by their number once more, as in the authors' code. Chen et al. 2020 (CSKD), ECCV. student: (B,
    D_student); teacher: (B, D_teacher), of any widths.
    """
    check_reduction(reduction, "mean", "paper")
    valid = validity(mask, student, teacher)
    same = _same(labels, valid)
    first = valid & ~same.tril(-1).any(1)  # one row stands for its class
    ours, theirs = (unit(_centres(blanked(side, valid), same)) for side in (student, teacher.detach()))
    gaps = product(ours, ours.T) - product(theirs, theirs.T)
    gaps = gaps - gaps.diagonal().diag()  # of a class with itself: rounding
    value = masked_mean(gaps.square(), first[:, None] & first)
    return value if reduction == "mean" else value / first.sum().clamp(min=1)


def category_intra(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    mask: Mask = None,
    student_correct: Mask = None,
    teacher_correct: Mask = None,
    reduction: str = "mean",
) -> Tensor:
    """Structure within categories: where a sample lies from the centre of its class.

    mean over valid samples and entries of ((s - m_s) - (t - m_t))², no gradient through the centre m_s; with reduction
    "paper" divided by D once more, as in the authors' code. Chen et al. 2020 (CSKD), ECCV. student, teacher: (B, D);
    student_correct, teacher_correct: (B,), the samples that a side's centres are the means of, None: all. A sample
    whose class has none is its own centre.
    """
    check_reduction(reduction, "mean", "paper")
    student, teacher, _ = matched(student, teacher, mask)
    valid = validity(mask, student)
    same = _same(labels, valid)
    ours = student - _centres(student, same, student_correct).detach()
    theirs = teacher - _centres(teacher, same, teacher_correct)
    return masked_mean((ours - theirs).square(), valid[:, None]) / (1 if reduction == "mean" else student.shape[1])


def category_compactness(student: Tensor, labels: Tensor, mask: Mask = None) -> Tensor:
    """Compactness of categories: the student's samples move to the centre of their class; no teacher.

    mean over valid samples and entries of (s - m_s)², no gradient through the centre m_s: 0 only where all samples of
    a class are one point. Chen et al. 2020 (CSKD), the authors' code. student: (B, D).
    """
    valid = validity(mask, student)
    student = blanked(student, valid)
    return masked_mean((student - _centres(student, _same(labels, valid)).detach()).square(), valid[:, None])


def _same(labels: Tensor, valid: Tensor) -> Tensor:
    """(B, B), the pairs of valid samples of one class."""
    if labels.shape != valid.shape:
        raise ValueError(
            f"expected one label per sample, {[*valid.shape]}, got {[*labels.shape]}: a sample is of one class. Pass "
            "class numbers, not scores or labels of tokens."
        )
    return (labels[:, None] == labels) & valid[:, None] & valid


def _centres(rows: Tensor, same: Tensor, correct: Mask = None) -> Tensor:
    """The centre of each sample's class, (B, D): as many centres as samples, however many classes there are."""
    members = same if correct is None else same & correct
    counts = members.sum(1, keepdim=True)
    return torch.where(counts > 0, product(members.to(rows), rows) / counts.clamp(min=1), rows)
