"""Formulas of activation knowledge: maps over the tokens, distributions of channels, likeness of tokens.

Tokens are places, and the entries of a state are channels. Nearly all of it is free of both widths.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from hfdistill.functional.reductions import (
    Mask,
    blanked,
    check_reduction,
    divergence,
    masked_mean,
    product,
    softened,
    unit,
    validity,
)

_KERNELS = ("polynomial", "linear", "gaussian")


def activation_map(states: Tensor, mask: Mask = None, power: float = 2.0) -> Tensor:
    """Where a layer is active: the energies of a sample's tokens, as a direction.

    a / |a|, a_i = Σ_d |x_id|^p over valid tokens, 0 elsewhere. Zagoruyko and Komodakis 2017 (AT), arXiv 1612.03928.
    states: (B, N, D); power: p >= 1; returns (B, N). Raises ValueError for p < 1, whose gradient at 0 is infinite.
    """
    if not power >= 1:
        raise ValueError(f"expected a power of at least 1, got {power}: below, its gradient at 0 is infinite. Take 2.")
    return unit(blanked(states, validity(mask, states)).abs().pow(power).sum(-1))


def activation_attention(
    student: Tensor, teacher: Tensor, mask: Mask = None, power: float = 2.0, reduction: str = "mean"
) -> Tensor:
    """Attention transfer: the student is active where the teacher is.

    With Q = activation_map, "mean": over valid tokens of (Q_s - Q_t)², the authors' code; "paper": |Q_s - Q_t|, not
    squared, mean over samples with a valid token. Zagoruyko and Komodakis 2017 (AT), arXiv 1612.03928.
    student: (B, N, D_s); teacher: (B, N, D_t); mask: (B, N).
    """
    check_reduction(reduction, "mean", "paper")
    valid = validity(mask, student, teacher)
    ours, theirs = activation_map(student, mask, power), activation_map(teacher.detach(), mask, power)
    squares = (ours - theirs).square()  # (B, N)
    return masked_mean(squares, valid) if reduction == "mean" else masked_mean(_root(squares.sum(-1)), valid.any(-1))


def _root(squares: Tensor) -> Tensor:
    positive = squares > 0  # at 0 the root is infinitely steep, and 0 times that is NaN
    return squares.where(positive, 1).sqrt().where(positive, 0)


def neuron_selectivity(
    student: Tensor,
    teacher: Tensor,
    mask: Mask = None,
    kernel: str = "polynomial",
    variance: float | None = None,
) -> Tensor:
    """Neuron selectivity transfer: what the student's channels select is distributed as the teacher's is.

    mean over samples with a valid token of the squared maximum mean discrepancy mean k(t, t') + mean k(s, s') -
    2 mean k(s, t) between their channels, each a direction over the valid tokens. k(u, v) = (u·v)² (polynomial), u·v
    (linear) or exp(-|u - v|² / 2σ²) (gaussian, which needs B D² memory). Huang and Wang 2017 (NST), arXiv 1707.01219.
    student: (B, N, D_s); teacher: (B, N, D_t); variance: σ²; None: the mean |s - t|² of each sample, held constant.
    """
    if kernel not in _KERNELS:
        raise ValueError(f"expected a kernel among {_KERNELS}, got {kernel!r}: it says which differences count.")
    if variance is not None and not variance > 0:
        raise ValueError(f"expected a variance above 0, got {variance}: it divides distances. None measures it.")
    valid = validity(mask, student, teacher)
    ours, theirs = (unit(blanked(side, valid).transpose(1, 2)) for side in (student, teacher.detach()))  # (B, D, N)
    if kernel == "gaussian":
        return masked_mean(_gaussian_discrepancy(ours, theirs, variance), valid.any(1))
    if kernel == "linear":
        gap = ours.mean(1) - theirs.mean(1)  # (B, N)
    else:  # mean (u·v)² = <U, V> with U = mean u uᵀ: N² numbers instead of D², and never below 0
        first, second = (product(side.transpose(1, 2), side) / side.shape[1] for side in (ours, theirs))
        gap = (first - second).flatten(1)  # (B, N²)
    return masked_mean(gap.square().sum(-1), valid.any(1))


def _gaussian_discrepancy(student: Tensor, teacher: Tensor, variance: float | None) -> Tensor:
    def distances(left: Tensor, right: Tensor) -> Tensor:
        lengths = left.square().sum(-1)[:, :, None] + right.square().sum(-1)[:, None]
        return (lengths - 2 * product(left, right.transpose(1, 2))).clamp(min=0)  # (B, D, D')

    cross = distances(student, teacher)
    # at least 1e-6, above the rounding errors of float32: channels that are all alike have no spread
    spread = cross.detach().mean((1, 2), keepdim=True).clamp(min=1e-6) if variance is None else variance
    squares = (distances(teacher, teacher), distances(student, student), cross)
    theirs, ours, both = ((-square / (2 * spread)).exp().mean((1, 2)) for square in squares)
    return theirs + ours - 2 * both


def token_gram(
    student_first: Tensor, student_second: Tensor, teacher_first: Tensor, teacher_second: Tensor, mask: Mask = None
) -> Tensor:
    """Inner products of the tokens of one layer with those of another, or of the same: TextBrewer's "nst".

    mean over pairs of valid tokens of (X_s Y_sᵀ / D_s - X_t Y_tᵀ / D_t)². Yang et al. 2020 (TextBrewer), arXiv
    2002.12620, code; another loss than neuron_selectivity. student_*: (B, N, D_s); teacher_*: (B, N, D_t);
    mask: (B, N).
    """
    valid = validity(mask, student_first, student_second, teacher_first, teacher_second)
    sides = ((student_first, student_second), (teacher_first.detach(), teacher_second.detach()))
    if any(first.shape[-1] != second.shape[-1] for first, second in sides):
        raise ValueError(
            f"expected one width within a model, got {[first.shape[-1] for first, _ in sides]} and "
            f"{[second.shape[-1] for _, second in sides]}: tokens of two layers are multiplied. Take other layers."
        )
    student, teacher = (
        product(blanked(first, valid), blanked(second, valid).transpose(1, 2)) / first.shape[-1]
        for first, second in sides
    )
    return masked_mean((student - teacher).square(), valid[:, :, None] & valid[:, None])  # (B, N, N)


def token_similarity(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """Pair-wise structure: which tokens of a sample are alike, free of both widths and of rotations.

    mean over samples with a valid token of 1/n_b² Σ_ij (cos(s_i, s_j) - cos(t_i, t_j))², n_b their valid tokens.
    Liu et al. 2019 (structured KD), arXiv 1903.04197, whose code takes the lengths as constants; here the gradient is
    whole. student: (B, N, D_s); teacher: (B, N, D_t); mask: (B, N).
    """
    valid = validity(mask, student, teacher)
    sides = (unit(blanked(side, valid)) for side in (student, teacher.detach()))
    ours, theirs = (product(side, side.transpose(1, 2)) for side in sides)  # (B, N, N), 0 where a token is padding
    rows = (ours - theirs).square().sum((1, 2)) / valid.sum(1).clamp(min=1).square()
    return masked_mean(rows, valid.any(1))


def channel_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0, mask: Mask = None) -> Tensor:
    """Channel-wise distillation: each channel is a distribution over the tokens.

    T² · mean over samples with a valid token and D of Σ_i φ_t (log φ_t - log φ_s), φ = softmax over the valid tokens
    of x / T. Shu et al. 2020 (CWD), arXiv 2011.13256. Both: (B, N, D); temperature: one number; mask: (B, N). An entry
    at -inf on both sides is left out.
    """
    valid = validity(mask, student, teacher)
    student, teacher, _ = softened(student, teacher, temperature, mask, classes=1)
    counted = valid[..., None] & ~(torch.isneginf(student) & torch.isneginf(teacher))
    lowest = torch.finfo(student.dtype).min  # not -inf: a channel that counts nowhere would be NaN
    ours, theirs = (side.masked_fill(~counted, lowest).transpose(1, 2) for side in (student, teacher))  # (B, D, N)
    return masked_mean(divergence(theirs, ours).mean(-1), valid.any(1)) * temperature**2


def projected_mse(student: Tensor, projected: Tensor, mask: Mask = None) -> Tensor:
    """Knowledge projection: student states against the teacher's, both normalised, in the student's space.

    mean over valid tokens and D of (n(s) - n(p))², n the layer normalisation without weights: a projection that is
    trained too could otherwise shrink both sides to 0. Zhi et al. 2017 (KPN), arXiv 1710.09505; n is our guard.
    student: (..., D); projected: (..., D), the teacher's states after a projection, NOT detached: it learns.
    """
    if student.shape != projected.shape:
        raise ValueError(
            f"expected one shape on both sides, got {[*student.shape]} (student) and {[*projected.shape]} (projected "
            "teacher): entries are compared one by one. Project the teacher to the student's width."
        )
    valid = validity(mask, student)
    ours, theirs = (F.layer_norm(blanked(side, valid), side.shape[-1:]) for side in (student, projected))
    return masked_mean((ours - theirs).square().mean(-1), valid)
