"""Formulas of relations between the samples of a batch, free of both widths.

Everywhere student: (B, ...), teacher: (B, ...), flattened to one vector per sample; mask: (B,), the samples that
count. A sample that does not count enters nothing: no mean distance, no largest one, no denominator.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hfdistill.functional.reductions import Mask, blanked, masked_mean, product, unit, validity

NEAREST = 1e-12
"""The smallest squared distance of two samples: the square root has no gradient at 0."""


def distance_relation(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """Relational distillation by distance: how far samples are from each other, in units of the mean distance.

    mean over all pairs of valid samples, each with itself too, of huber(d_s - d_t), d_ij = |x_i - x_j| / mean over
    i ≠ j, huber(x) = x²/2 below 1 and |x| - 1/2 above. Park et al. 2019 (RKD), arXiv 1904.05068.
    """
    student, teacher, valid = _paired_rows(student, teacher, mask)
    student, teacher = (_unit_distances(side, valid) for side in (student, teacher))
    return masked_mean(F.smooth_l1_loss(student, teacher, reduction="none"), _pairs_of(valid))


def angle_relation(student: Tensor, teacher: Tensor, mask: Mask = None, vertices: Tensor | None = None) -> Tensor:
    """Relational distillation by angle: the angles of all triangles that samples form.

    mean over all triples of valid samples of huber(ψ_s - ψ_t), ψ_ijk = cos of the angle at i between j and k, 0 where
    two of them coincide. Park et al. 2019 (RKD), arXiv 1904.05068. vertices: (A,) numbers of the samples i, None: all;
    memory grows with A B (B + D).
    """
    student, teacher, valid = _paired_rows(student, teacher, mask)
    vertices = torch.arange(len(valid), device=valid.device) if vertices is None else vertices
    student, teacher = (_cosines(side, vertices) for side in (student, teacher))
    triples = valid[vertices][:, None, None] & _pairs_of(valid)  # (A, B, B)
    return masked_mean(F.smooth_l1_loss(student, teacher, reduction="none"), triples)


def similarity_preserving(student: Tensor, teacher: Tensor, mask: Mask = None, centre: bool = False) -> Tensor:
    """Similarities between the samples of a batch.

    |G_s - G_t|² / B², G the Gram matrix (B, B) of the samples, its rows scaled to length 1. Tung and Mori 2019, arXiv
    1907.09682. Pool padded tokens before. centre: take the mean of the samples away first, which the paper does not;
    without it vectors that share a large common part are all alike.
    """
    student, teacher, valid = _paired_rows(student, teacher, mask)
    if centre:
        student, teacher = ((side - _mean(side, valid)) * valid[:, None] for side in (student, teacher))
    student, teacher = (unit(product(side, side.T)) for side in (student, teacher))
    return masked_mean((student - teacher).square(), _pairs_of(valid))


def probabilistic_transfer(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """Probabilistic knowledge transfer: which samples are each other's neighbours, as distributions.

    mean over all pairs of valid samples of p_t log(p_t / p_s), p the rows of (1 + cos(x_i, x_j)) / 2 scaled to the sum
    1. Passalis and Tefas 2018 (PKT), arXiv 1803.10837. As in the authors' code 1e-7 is added to lengths and within the
    logarithm.
    """
    student, teacher, valid = _paired_rows(student, teacher, mask)
    student, teacher = (_neighbours(side, valid) for side in (student, teacher))
    return masked_mean(teacher * ((teacher + 1e-7) / (student + 1e-7)).log(), _pairs_of(valid))


def correlation_congruence(
    student: Tensor, teacher: Tensor, mask: Mask = None, gamma: float = 0.4, order: int = 2
) -> Tensor:
    """Correlation congruence: a Gaussian kernel between samples, as its Taylor polynomial.

    mean over all pairs of valid samples of (K_s - K_t)², K = e^(-2γ) Σ_p (2γ)^p cos^p / p!, p = 0 to `order`. Peng et
    al. 2019 (CC), arXiv 1904.01802. gamma: γ > 0 of the kernel exp(-γ |x - y|²) on vectors of length 1.
    """
    student, teacher, valid = _paired_rows(student, teacher, mask)
    gaps = _kernel(unit(student), gamma, order) - _kernel(unit(teacher), gamma, order)
    return masked_mean((gaps - gaps.diagonal().diag()).square(), _pairs_of(valid))  # of a row with itself: rounding


def instance_edges(student: Tensor, teacher: Tensor, mask: Mask = None, detach_max: bool = True) -> Tensor:
    """Edges of the instance relationship graph: squared distances between samples, in units of the largest.

    mean over all pairs of valid samples of (E_s - E_t)², E_ij = |x_i - x_j|² / max. Liu et al. 2019 (IRG), CVPR.
    detach_max: no gradient through the largest, as in the authors' code.
    """
    student, teacher, valid = _paired_rows(student, teacher, mask)
    others = _others(valid)
    edges = [_squared_distances(side, valid).masked_fill(~others, 0) for side in (student, teacher)]
    student, teacher = (_of_largest(edge, detach_max) for edge in edges)
    return masked_mean((student - teacher).square(), _pairs_of(valid))


def layer_transformation(
    student_first: Tensor,
    student_second: Tensor,
    teacher_first: Tensor,
    teacher_second: Tensor,
    mask: Mask = None,
    detach_max: bool = True,
) -> Tensor:
    """Transformations of the instance relationship graph: how far each sample moves between two layers of one network.

    mean over valid samples of (T_s - T_t)², T = |x_first - x_second|² / max over the samples. Liu et al. 2019 (IRG),
    CVPR. Both tensors of a network have one shape. detach_max: see instance_edges.
    """
    for first, second in ((student_first, student_second), (teacher_first, teacher_second)):
        if first.shape != second.shape:
            raise ValueError(
                f"expected both layers of a network in one shape, got {[*first.shape]} and {[*second.shape]}: a "
                "sample moves within one space. Pool the tokens, or compare layers of one width."
            )
    student, teacher, valid = _paired_rows(student_first - student_second, teacher_first - teacher_second, mask)
    moves = [side.square().sum(1).clamp(min=NEAREST).masked_fill(~valid, 0) for side in (student, teacher)]
    student, teacher = (_of_largest(move, detach_max) for move in moves)
    return masked_mean((student - teacher).square(), valid)


def _paired_rows(student: Tensor, teacher: Tensor, mask: Mask) -> tuple[Tensor, Tensor, Tensor]:
    """Both sides as vectors (B, D), blanked, the teacher detached; and the validity of the samples, (B,)."""
    if len(student) != len(teacher):
        raise ValueError(
            f"expected batches of one shape on both sides, got {len(student)} samples (student) and {len(teacher)} "
            "(teacher): the samples of a batch are related to each other. Show both models the same samples."
        )
    student, teacher = student.flatten(1), teacher.detach().flatten(1)
    valid = validity(mask, student, teacher)
    return blanked(student, valid), blanked(teacher, valid), valid


def _pairs_of(valid: Tensor) -> Tensor:
    """(B, B), the pairs of two valid samples."""
    return valid[:, None] & valid


def _squared_distances(rows: Tensor, valid: Tensor) -> Tensor:
    """|x_i - x_j|² of rows (B, D), at least NEAREST -> (B, B); pairs with a row that is not valid mean nothing."""
    rows = rows - _mean(rows, valid).detach()  # moves nothing but the rounding error, which a common part makes large
    products = product(rows, rows.T)
    squares = products.diagonal()
    return (squares[:, None] + squares - 2 * products).clamp(min=NEAREST)


def _others(valid: Tensor) -> Tensor:
    return _pairs_of(valid) & ~torch.eye(len(valid), dtype=torch.bool, device=valid.device)


def _mean(rows: Tensor, valid: Tensor) -> Tensor:
    return rows.sum(0) / valid.sum().clamp(min=1)  # (D,)


def _unit_distances(rows: Tensor, valid: Tensor) -> Tensor:
    others = _others(valid)
    distances = _squared_distances(rows, valid).sqrt().masked_fill(~others, 0)  # after the root: nothing pulls there
    mean = masked_mean(distances, others)
    return distances / torch.where(mean > 0, mean, 1)


def _cosines(rows: Tensor, vertices: Tensor) -> Tensor:
    sides = rows - rows[vertices][:, None]  # (A, B, D)
    lengths = _lengths(sides)
    sides = sides / torch.where(lengths > NEAREST, lengths, 1)  # a vertex and itself: no direction
    return product(sides, sides.transpose(1, 2))  # (A, B, B)


def _neighbours(rows: Tensor, valid: Tensor) -> Tensor:
    rows = rows / (_lengths(rows) + 1e-7)
    near = ((product(rows, rows.T) + 1) / 2).masked_fill(~_pairs_of(valid), 0)
    return near / near.sum(1, keepdim=True).masked_fill(~valid[:, None], 1)


def _kernel(rows: Tensor, gamma: float, order: int) -> Tensor:
    near = product(rows, rows.T)
    factors = [math.exp(-2 * gamma) * (2 * gamma) ** power / math.factorial(power) for power in range(order + 1)]
    return torch.stack([factor * near**power for power, factor in enumerate(factors)]).sum(0)


def _lengths(rows: Tensor) -> Tensor:
    squares = rows.square().sum(-1, keepdim=True)  # 0 has no root that could be derived twice
    return torch.where(squares > 0, squares, 1).sqrt().masked_fill(squares == 0, 0)


def _of_largest(values: Tensor, detach_max: bool) -> Tensor:
    largest = values.amax() if values.numel() else values.sum()
    largest = largest.detach() if detach_max else largest
    return values / torch.where(largest > 0, largest, 1)
