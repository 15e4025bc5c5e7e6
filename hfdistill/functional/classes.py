"""Formulas of class knowledge: what a teacher's answer says about the label, about the other classes, about ranks."""

import torch
from torch import Tensor

from hfdistill.functional.reductions import (
    Mask,
    Temperature,
    divergence,
    masked_mean,
    matched,
    softened,
    tempered_mean,
)

_IGNORED = -100  # the label that PyTorch's cross-entropy ignores
_EPSILON = 1e-8  # of DIST, added to the product of two lengths
_LEAST_DEVIATION = 1e-7  # of LSKD, added to a standard deviation
_ROWS_THAT_CORRELATE = 3  # two numbers always lie on a line


def decoupled_parts(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: Temperature = 4.0, mask: Mask = None
) -> tuple[Tensor, Tensor]:
    """Soft targets in two: how sure the teacher is of the label, and how it ranks the other classes.

    With p = softmax(logits / T), y the label and q = softmax over the classes that are not y: TCKD = T² · mean over
    valid rows of KL((p_t(y), 1 - p_t(y)) || (p_s(y), 1 - p_s(y))); NCKD = T² · mean of KL(q_t || q_s). A row's soft
    target divergence is TCKD + (1 - p_t(y)) NCKD; with two classes NCKD is 0. Zhao et al. 2022 (DKD), arXiv
    2203.08679. student, teacher: logits (..., K), K >= 2; labels: (...), classes; rows labelled -100 do not count.
    """
    known = labels != _IGNORED
    valid = known if mask is None else known & mask.bool()
    student, teacher, _ = softened(student, teacher, temperature, valid)
    label = labels.masked_fill(~valid, 0).long()[..., None]  # (..., 1), class 0 where there is none
    ours, our_others = _decoupled(student, label)
    theirs, their_others = _decoupled(teacher, label)
    target, others = divergence(theirs, ours), divergence(their_others, our_others)
    return tempered_mean(target, temperature, valid), tempered_mean(others, temperature, valid)


def decoupled_kl(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: Temperature = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    mask: Mask = None,
) -> Tensor:
    """Decoupled soft targets: both parts of `decoupled_parts`, each with a weight of its own.

    alpha TCKD + beta NCKD. Zhao et al. 2022 (DKD), arXiv 2203.08679. Shapes are those of decoupled_parts.
    """
    target, others = decoupled_parts(student, teacher, labels, temperature, mask)
    return alpha * target + beta * others


def class_correlation(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    mask: Mask = None,
) -> Tensor:
    """Correlation instead of divergence: the student ranks classes in a row, and rows in a class, as the teacher does.

    T² (beta inter + gamma intra) of P = softmax(logits / T), rows by classes, rho Pearson's correlation with 1e-8
    added to its denominator: inter = 1 - mean over valid rows of rho(P_s[i, :], P_t[i, :]), intra = 1 - mean over
    classes of rho(P_s[:, k], P_t[:, k]) over the valid rows. With fewer than 3 of these intra is 0, as any two numbers
    lie on a line; of two classes inter teaches nothing for the same reason. What does not vary correlates with
    nothing: rho is 0. Huang et al. 2022 (DIST), arXiv 2205.10536. student, teacher: logits (..., K), K >= 2.
    """
    student, teacher, valid = softened(student, teacher, temperature, mask)
    ours, theirs = (side.softmax(-1).flatten(0, -2) for side in (student, teacher))  # (rows, K)
    valid = torch.ones_like(ours[:, 0], dtype=torch.bool) if valid is None else valid.flatten()  # (rows,)
    inter = masked_mean(1 - _pearson(ours, theirs), valid)
    intra = 1 - _pearson(ours.T, theirs.T, valid).mean()
    return temperature**2 * (beta * inter + gamma * intra * (valid.sum() >= _ROWS_THAT_CORRELATE))


def standardized_kl(student: Tensor, teacher: Tensor, temperature: Temperature = 2.0, mask: Mask = None) -> Tensor:
    """Soft targets of standardised logits: the student learns the teacher's ranking, not the size of its logits.

    T² · mean over valid rows of KL(p_t || p_s), p = softmax(z / T), z = (logits - mean) / (1e-7 + standard deviation),
    both over the row's own classes, the deviation unbiased (K - 1); classes at -inf stay there and take no part. Two
    classes always become ±0.707. Sun et al. 2024 (LSKD), arXiv 2403.01427. student, teacher: logits (..., K), K >= 2.
    """
    student, teacher, valid = matched(student, teacher, mask)
    student, teacher, _ = softened(_standardized(student), _standardized(teacher), temperature, valid)
    return tempered_mean(divergence(teacher, student), temperature, valid)


def hard_label_cross_entropy(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """Hard distillation: the teacher's most likely class is the label.

    mean over valid rows of -log p_s(argmax_k t_k). Touvron et al. 2021 (DeiT), arXiv 2012.12877.
    student, teacher: logits (..., K), K >= 2.
    """
    student, teacher, valid = softened(student, teacher, 1.0, mask)
    likeliest = teacher.argmax(-1, keepdim=True)  # (..., 1)
    return masked_mean(-student.log_softmax(-1).gather(-1, likeliest)[..., 0], valid)


def _pearson(first: Tensor, second: Tensor, valid: Mask = None) -> Tensor:
    """Pearson's correlation along the last axis, of (..., K) with (..., K) -> (...); over valid entries only."""
    (first, first_length), (second, second_length) = _deviations(first, valid), _deviations(second, valid)
    return (first * second).sum(-1) / (first_length * second_length + _EPSILON)[..., 0]


def _decoupled(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (..., 2) of the label and of all other classes together, and (..., K) with the label shut out."""
    others = logits.scatter(-1, label, -torch.inf)
    alone = (others == -torch.inf).all(-1, keepdim=True)  # no other class is open: the gradient would be NaN
    others = others.masked_fill(alone, 0)
    rest = others.logsumexp(-1, keepdim=True).masked_fill(alone, -torch.inf)
    return torch.cat([logits.gather(-1, label), rest], -1), others


def _standardized(logits: Tensor) -> Tensor:
    """Each row less its mean, over its standard deviation; classes at -inf stay there."""
    valid = logits != -torch.inf
    deviations, length = _deviations(logits, valid)
    spread = length / (valid.sum(-1, keepdim=True) - 1).clamp(min=1).to(length).sqrt()  # (..., 1)
    return (deviations / (_LEAST_DEVIATION + spread)).masked_fill(~valid, -torch.inf)


def _deviations(values: Tensor, valid: Mask = None) -> tuple[Tensor, Tensor]:
    """Each row (..., K) less its mean over valid entries, 0 elsewhere, and the length (..., 1) of this.

    The length of a row that is constant, up to rounding, is given as 1: it has no direction, and to divide by what
    rounding left of it would send a gradient of any size.
    """
    valid = (values.new_ones((), dtype=torch.bool) if valid is None else valid).expand_as(values)
    values = values.masked_fill(~valid, 0)
    mean = values.sum(-1, keepdim=True) / valid.sum(-1, keepdim=True).clamp(min=1)
    deviations = (values - mean).masked_fill(~valid, 0)
    square = deviations.square().sum(-1, keepdim=True)  # (..., 1)
    rounding = (10 * torch.finfo(values.dtype).eps) ** 2 * values.square().sum(-1, keepdim=True)
    return deviations, square.masked_fill(square <= rounding, 1).sqrt()
