"""Formulas of contextual knowledge: how the items of a group lie to each other, free of both widths.

Items are the tokens of a sentence (word relation) or the states of one token at different layers (layer-transforming
relation). Shapes: (..., M, D) groups of M items, mask (..., M).
"""

import torch
from torch import Tensor
from torch.nn import functional

from hfdistill.functional.reductions import Mask, blanked, divergence, masked_mean, product, unit, validity


def _inner_products(items: Tensor, valid: Tensor) -> Tensor:
    """Inner products (..., M, M) of items seen from the mean of the valid ones, whose size would drown differences."""
    items = blanked(items, valid)
    mean = items.sum(-2, keepdim=True) / valid.sum(-1).clamp(min=1)[..., None, None]
    return product(items - mean, (items - mean).transpose(-1, -2))


def _squared_distances(inner: Tensor) -> Tensor:
    own = inner.diagonal(dim1=-2, dim2=-1)  # (..., M)
    return own[..., :, None] + own[..., None, :] - 2 * inner


def _pairs(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs (..., M, M) are of valid items, and which of them of two different ones."""
    pairs = valid[..., :, None] & valid[..., None, :]
    return pairs, pairs & ~torch.eye(valid.shape[-1], dtype=torch.bool, device=valid.device)


def relative_distance_mse(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """Distances between the items of a group, in units of their mean in it.

    mean over valid pairs of (d_s - d_t)², d = |x_i - x_j|² over the mean of it over the group's pairs of different
    items; an item and itself are a pair. Park et al. 2021 (CKD), arXiv 2109.08359; the square is what the authors'
    code computes, whose flag `squared` means the opposite. student: (..., M, D_s); teacher: (..., M, D_t).
    """
    valid = validity(mask, student, teacher)
    pairs, others = _pairs(valid)
    sides = []
    for items in (student, teacher.detach()):
        distances = _squared_distances(_inner_products(items, valid)).masked_fill(~others, 0)
        mean = distances.sum((-2, -1), keepdim=True) / others.sum((-2, -1), keepdim=True).clamp(min=1)
        sides.append(distances / torch.where(mean > 1e-12, mean, 1))
    return masked_mean((sides[0] - sides[1]).square(), pairs)


def cosine_row_kl(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """Cosines of each item with the others of its group, as a distribution over them.

    1/P Σ_i KL(softmax_j(cos_t(i, j)) || softmax_j(cos_s(i, j))), j the other valid items, P the valid pairs, as in the
    authors' code: a row is divided by its length once more. Park et al. 2021 (CKD), arXiv 2109.08359. student:
    (..., M, D_s); teacher: (..., M, D_t).
    """
    valid = validity(mask, student, teacher)
    pairs, others = _pairs(valid)
    sides = []
    for items in (student, teacher.detach()):
        items = unit(blanked(items, valid))
        cosines = product(items, items.transpose(-1, -2))
        sides.append(cosines.masked_fill(~others, torch.finfo(cosines.dtype).min))  # -inf: NaN without another
    rows = divergence(sides[1], sides[0]).masked_fill(~valid, 0)  # (..., M)
    return rows.sum() / pairs.sum().clamp(min=1)


def _neighbours(valid: Tensor, window: int | None) -> tuple[Tensor | None, Tensor]:
    """Indices (M, W) of the items around each, and which of them count, (..., M, W); None: all items around each."""
    items = valid.shape[-1]
    if window is None or window >= 2 * items - 1:
        return None, valid[..., None, :].expand(*valid.shape, items)
    offsets = torch.arange(-(window // 2), window // 2 + 1, device=valid.device)
    places = torch.arange(items, device=valid.device)[:, None] + offsets  # (M, W)
    index = places.clamp(0, items - 1)
    return index, valid[..., index] & (places == index)


def _angles(items: Tensor, valid: Tensor, index: Tensor | None) -> Tensor:
    """Cosines (..., M, W, W) of the angles at each item between two around it, 0 where one is the item itself.

    Made of inner products: the differences themselves would be W times the size of the items.
    """
    inner = _inner_products(items, valid)
    own = inner.diagonal(dim1=-2, dim2=-1)  # (..., M)
    squared = _squared_distances(inner)
    alike = squared <= 100 * torch.finfo(inner.dtype).eps * (own[..., :, None] + own[..., None, :])  # rounding errors
    inverse = squared.masked_fill(alike, 1).rsqrt().masked_fill(alike, 0)  # (..., M, M)
    between = inner[..., None, :, :]
    if index is not None:
        between = inner[..., index[:, :, None], index[:, None, :]]  # (..., M, W, W)
        around = index.expand(*inner.shape[:-2], *index.shape)
        inner, inverse = inner.gather(-1, around), inverse.gather(-1, around)  # (..., M, W)
    cosines = between - inner[..., :, None] - inner[..., None, :] + own[..., None, None]
    return cosines * inverse[..., :, None] * inverse[..., None, :]


def relation_angle(student: Tensor, teacher: Tensor, mask: Mask = None, window: int | None = None) -> Tensor:
    """Angles that triples of a group's items form.

    mean over valid triples (i, j, k), repetitions in it too, of smooth L1(a_s, a_t), a = cos ∠(x_j - x_i, x_k - x_i);
    with a window, j and k at most (window - 1) / 2 places from i. Park et al. 2021 (CKD), arXiv 2109.08359. student:
    (..., M, D_s); teacher: (..., M, D_t); window: odd, None for all. Cost: M · window² per group.
    """
    valid = validity(mask, student, teacher)
    index, near = _neighbours(valid, window)
    triples = valid[..., None, None] & near[..., :, None] & near[..., None, :]  # (..., M, W, W)
    ours, theirs = (_angles(items, valid, index) for items in (student, teacher.detach()))
    return masked_mean(functional.smooth_l1_loss(ours, theirs, reduction="none"), triples)


def triple_count(mask: Tensor, window: int | None = None) -> Tensor:
    """How many triples relation_angle averages over; mask: (..., M)."""
    valid = mask.bool()
    _, near = _neighbours(valid, window)
    return (near.sum(-1).square() * valid).sum()
