"""Formulas of kernel alignment: do the rows lie to each other as the teacher's do, whatever the two widths."""

import torch
from torch import Tensor

from hfdistill.functional.reductions import Mask, blanked, product, validity


def _rows(states: Tensor, valid: Tensor, centre: bool) -> Tensor:
    """The states as rows (n, D) of length 1 altogether, masked ones at 0, seen from their mean if `centre`."""
    rows, kept = blanked(states, valid).flatten(0, -2), valid.flatten()[:, None]  # (n, D), (n, 1)
    given = torch.linalg.vector_norm(rows.detach())
    if centre:
        rows = (rows - rows.sum(0) / kept.sum().clamp(min=1)).masked_fill(~kept, 0)
    # Alignment is free of the scale, so that dividing by a constant changes no gradient; it keeps fourth powers small.
    # Rows that are all alike leave only rounding errors behind: those have no direction.
    length = torch.linalg.vector_norm(rows.detach())
    return rows / torch.where(length > 10 * torch.finfo(rows.dtype).eps * given, length, torch.inf)


def _overlaps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Σ_ij ⟨x_i, x_j⟩⟨y_i, y_j⟩ of x with y, x with x and y with y, by whichever matrices are smaller."""
    if len(first) > max(first.shape[1], second.shape[1]):
        pairs = ((first, first), (second, second), (first, second))
        ours, theirs, both = (product(left.T, right) for left, right in pairs)  # (D, D)
        return both.square().sum(), ours.square().sum(), theirs.square().sum()
    ours, theirs = (product(rows, rows.T) for rows in (first, second))  # (n, n)
    return (ours * theirs).sum(), ours.square().sum(), theirs.square().sum()


def _unbiased(overlap: Tensor, first: Tensor, second: Tensor, count: Tensor) -> Tensor:
    """The unbiased HSIC times n (n - 3), of the overlap of centred rows and of their squared lengths (n,)."""
    left = count.to(overlap).clamp(min=4) - 2  # a quotient of integers would be float32
    return overlap - (left + 2) / left * (first * second).sum() + first.sum() * second.sum() / ((left + 1) * left)


def _similarity(student: Tensor, teacher: Tensor, mask: Mask, centre: bool, debiased: bool) -> tuple[Tensor, Tensor]:
    valid = validity(mask, student, teacher)
    count = valid.sum()
    ours, theirs = _rows(student, valid, centre), _rows(teacher.detach(), valid, centre)
    both, own, other = _overlaps(ours, theirs)
    if debiased:
        first, second = ours.square().sum(1), theirs.square().sum(1)  # (n,)
        both = _unbiased(both, first, second, count)
        own, other = _unbiased(own, first, first, count), _unbiased(other, second, second, count)
    own, other = (torch.where(norm > 1e-12, norm, torch.inf).sqrt() for norm in (own, other))  # no kernel: 0, not 0/0
    return both / own / other, count >= (4 if debiased else 2 if centre else 1)


def linear_cka(student: Tensor, teacher: Tensor, mask: Mask = None, centre: bool = True) -> Tensor:
    """Centred kernel alignment with linear kernels, a similarity in [0, 1]; free of widths, rotation and scale.

    |XᵀY|² / (|XᵀX| |YᵀY|), Frobenius norms, X (n, D_s) and Y (n, D_t) the valid rows less their mean, which
    centre=False leaves in. 0 where a side has no two different rows. Kornblith et al. 2019, arXiv 1905.00414, section
    3; uncentred: Zhou et al. 2024 (PCKA), arXiv 2401.11824. student: (..., D_s); teacher: (..., D_t). With n <= D it
    is near 1 whatever the rows: use many more rows than D, or linear_cka_debiased.
    """
    similarity, enough = _similarity(student, teacher, mask, centre, debiased=False)
    return torch.where(enough, similarity, 0)


def linear_cka_debiased(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """Centred kernel alignment that few rows do not flatter: around 0 for unrelated rows, and slightly below at times.

    H(K, L) / √(H(K, K) H(L, L)), K = XXᵀ, L = YYᵀ and H the unbiased HSIC, of kernels without their diagonals. Song et
    al. 2012, Feature Selection via Dependence Maximization, JMLR 13; Kornblith et al. 2019, arXiv 1905.00414. student:
    (..., D_s); teacher: (..., D_t); 0 for fewer than 4 valid rows.
    """
    similarity, enough = _similarity(student, teacher, mask, centre=True, debiased=True)
    return torch.where(enough, similarity, 0)


def kernel_alignment(
    student: Tensor, teacher: Tensor, mask: Mask = None, centre: bool = True, debiased: bool = False
) -> Tensor:
    """1 - CKA, with linear_cka or, with `debiased`, linear_cka_debiased; 0 where too few rows are valid.

    Too few are 0 rows, 1 where they are centred, 3 where the estimate is debiased, which always centres. Sources and
    shapes: those of the two similarities.
    """
    similarity, enough = _similarity(student, teacher, mask, centre or debiased, debiased)
    return torch.where(enough, 1 - similarity, 0)
