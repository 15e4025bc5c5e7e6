"""Formulas of feature knowledge: states of one layer, entry by entry, and flows between two layers."""

from torch import Tensor
from torch.nn.functional import mse_loss

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


def hidden_mse(student: Tensor, teacher: Tensor, mask: Mask = None, reduction: str = "mean") -> Tensor:
    """Hints: the student's hidden states move to the teacher's.

    mean over valid tokens of mean_d (s - t)², or, with reduction "paper", of ½ Σ_d (s - t)². Romero et al. 2015
    (FitNets), arXiv 1412.6550. student, teacher: (..., D).
    """
    check_reduction(reduction, "mean", "paper")
    student, teacher, valid = matched(student, teacher, mask)
    total = mse_loss(student, teacher, reduction="sum")  # in one pass; where both are blank it is 0
    rows = max(student[..., 0].numel(), 1) if valid is None else valid.sum().clamp(min=1)
    return total / rows * (1 / max(student.shape[-1], 1) if reduction == "mean" else 0.5)


def hidden_cosine(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """Directions of the hidden states, whatever their length: 0 aligned, 1 orthogonal, 2 opposite.

    mean over valid tokens of 1 - cos(s, t). Sanh et al. 2019 (DistilBERT), arXiv 1910.01108. Both inputs: (..., D).
    """
    student, teacher, valid = matched(student, teacher, mask)
    return masked_mean(1 - (unit(student) * unit(teacher)).sum(-1), valid)


def patience(student: Tensor, teacher: Tensor, normalize: bool = True, reduction: str = "mean") -> Tensor:
    """Patient distillation: the [CLS] states of intermediate layers, as directions.

    (s/|s| - t/|t|)², "mean": over B, M and D, as in the authors' code; "paper": summed over M and D, mean over B.
    Sun et al. 2019 (PKD), arXiv 1908.09355. student, teacher: (B, M, D); normalize=False takes s and t as they are.
    """
    check_reduction(reduction, "mean", "paper")
    student, teacher, _ = matched(student, teacher)
    squares = (unit(student) - unit(teacher) if normalize else student - teacher).square()
    return masked_mean(squares if reduction == "mean" else squares.sum((-2, -1)))


def flow_of_solution(
    student_first: Tensor, student_second: Tensor, teacher_first: Tensor, teacher_second: Tensor, mask: Mask = None
) -> Tensor:
    """Flow of the solution procedure: how two layers of one network relate.

    mean over samples with a valid token, D_1 and D_2 of (G_s - G_t)², G = (1/n_b) Σ_i x_i y_iᵀ over the n_b valid
    tokens. Yim et al. 2017 (FSP), CVPR. *_first: (B, N, D_1); *_second: (B, N, D_2); mask: (B, N).
    """
    valid = validity(mask, student_first, student_second, teacher_first, teacher_second)
    sides = ((student_first, student_second), (teacher_first.detach(), teacher_second.detach()))
    flows = [product(blanked(x, valid).transpose(1, 2), blanked(y, valid)) for x, y in sides]  # (B, D_1, D_2)
    student, teacher, _ = matched(*flows)
    difference = (student - teacher) / valid.sum(1).clamp(min=1)[:, None, None]
    return masked_mean(difference.square(), valid.any(1)[:, None, None])
