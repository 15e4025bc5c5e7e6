"""Formulas of knowledge review: maps compared at several resolutions, and gates that fuse two levels of a student."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hfdistill.functional.reductions import Mask, blanked, masked_mean, matched, product, validity

_PYRAMID = (4, 2, 1)  # bins on each axis; each resolution that fits counts half as much as the one before it


def hierarchical_context(
    student: Tensor, teacher: Tensor, mask: Mask = None, sides: tuple[int, int] | None = None
) -> Tensor:
    """Hierarchical context loss: the difference of two maps, entry by entry and in averages over ever larger parts.

    mean over samples with a valid token of Σ_l w_l · mean (pool_l s - pool_l t)² / Σ_l w_l; l: all n_b valid tokens,
    then 4, 2 and 1 average-pooled bins as far as they are fewer than n_b (on a grid: than its rows), w = 1, 1/2, 1/4,
    1/8 in this order. Bins are those of adaptive average pooling over the valid tokens. Chen et al. 2021 (ReviewKD),
    arXiv 2104.09044. student, teacher: (B, N, D); mask: (B, N); sides: rows and columns of a grid of N places, which
    is pooled on both axes and has no mask.
    """
    if sides is not None and (mask is not None or student.ndim != 3 or sides[0] * sides[1] != student.shape[1]):
        raise ValueError(
            f"expected (B, {sides[0] * sides[1]}, D) without a mask for a grid of {sides[0]} x {sides[1]}, got "
            f"{[*student.shape]} {'without' if mask is None else 'with'} one. Padded text is a line: leave out sides."
        )
    valid = validity(mask, student)
    student, teacher, _ = matched(student, teacher, None if mask is None else valid)
    gap = student - teacher  # pooling is linear: the difference of two averages is the average of the differences
    counts = valid.sum(1)  # (B,)
    fine = gap.square().mean(-1).sum(1) / counts.clamp(min=1)  # (B,)
    total, weight, weights = fine, torch.ones_like(fine), torch.ones_like(fine)
    for bins in _PYRAMID:
        pooled = _pooled_line(gap, valid, bins) if sides is None else _pooled_grid(gap, sides, bins)  # (B, bins, D)
        fits = (bins < counts) if sides is None else torch.full_like(valid[:, 0], bins < sides[0])  # (B,)
        weight = torch.where(fits, weight / 2, weight)
        total = total + (weight * pooled.square().mean((1, 2))).masked_fill(~fits, 0)
        weights = weights + weight.masked_fill(~fits, 0)
    return masked_mean(total / weights, valid.any(1))


def _pooled_line(gap: Tensor, valid: Tensor, bins: int) -> Tensor:
    place = (valid.cumsum(1) - 1)[:, None]  # (B, 1, N) of each valid token among the valid ones of its sample
    counts, index = valid.sum(1)[:, None], torch.arange(bins, device=gap.device)
    first, last = index * counts // bins, ((index + 1) * counts + bins - 1) // bins  # (B, bins), last is exclusive
    members = valid[:, None] & (place >= first[..., None]) & (place < last[..., None])  # (B, bins, N)
    return product(members.to(gap.dtype), gap) / members.sum(-1, keepdim=True).clamp(min=1)


def _pooled_grid(gap: Tensor, sides: tuple[int, int], bins: int) -> Tensor:
    grid = gap.transpose(1, 2).reshape(len(gap), -1, *sides)  # (B, D, rows, columns)
    return F.adaptive_avg_pool2d(grid, bins).flatten(2).transpose(1, 2)  # (B, bins², D)


def gated_fusion(features: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Attention-based fusion of a student's level with what the deeper ones pass on: two gates for each place.

    a x + b y, (a, b) = sigmoid(W [x; y] + bias), one gate of each kind for all D. Chen et al. 2021 (ReviewKD), arXiv
    2104.09044. features x, residual y: (..., D), both the student's; weight: (2, 2 D); bias: (2,). Returns (..., D).
    """
    width = features.shape[-1]
    if features.shape != residual.shape or weight.shape != (2, 2 * width) or bias.shape != (2,):
        raise ValueError(
            f"expected two (..., D) of one shape, a weight (2, 2 D) and a bias (2,), got {[*features.shape]}, "
            f"{[*residual.shape]}, {[*weight.shape]} and {[*bias.shape]}. Bring both levels to one width and one "
            "number of places first."
        )
    features, residual, weight, bias = (blanked(side) for side in (features, residual, weight, bias))
    gates = product(features, weight[:, :width].T) + product(residual, weight[:, width:].T) + bias  # (..., 2)
    opened = gates.sigmoid()
    return opened[..., :1] * features + opened[..., 1:] * residual
