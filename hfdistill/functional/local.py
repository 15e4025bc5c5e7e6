"""Formulas of local correlation: parts of samples, within a sample and between samples."""

from typing import NamedTuple

import torch
from torch import Tensor

from hfdistill.functional.reductions import Mask, blanked, masked_mean, product, unit, validity


class LocalCorrelation(NamedTuple):
    """The three terms of local_correlation: within a sample, between samples at one place, and at any place."""

    within: Tensor
    same_place: Tensor
    across: Tensor


def local_correlation(student: Tensor, teacher: Tensor, mask: Mask = None) -> LocalCorrelation:
    """Local correlation consistency: the angles between parts of samples, free of both widths.

    Each term is the mean of (cos_s - cos_t)² over pairs of valid parts: the pairs of one sample, the pairs at one
    place, all pairs. After Li et al. 2020 (LCC), ECCV; the formula is reconstructed from its abstract. student: (B, P,
    D_student); teacher: (B, P, D_teacher); mask: (B, P). Memory grows with (B P)².
    """
    valid = validity(mask, student, teacher)  # (B, P)
    student, teacher = (unit(blanked(side, valid)) for side in (student, teacher.detach()))
    return LocalCorrelation(
        _difference(student, teacher, valid),
        _difference(student.transpose(0, 1), teacher.transpose(0, 1), valid.T),  # (P, B, D)
        _difference(student.flatten(0, 1), teacher.flatten(0, 1), valid.flatten()),  # (B P, D)
    )


def map_patches(maps: Tensor, parts: int) -> Tensor:
    """A map (B, D, rows, columns) cut into parts x parts patches, each flattened: (B, parts², D · size of a patch)."""
    if maps.shape[-2] % parts or maps.shape[-1] % parts:
        raise ValueError(
            f"expected a map that {parts} x {parts} patches divide, got {maps.shape[-2]} x {maps.shape[-1]}: patches "
            "of one size are compared. Take another number of parts, or pool the map."
        )
    batch, width, rows, columns = maps.shape
    cut = maps.reshape(batch, width, parts, rows // parts, parts, columns // parts)  # (B, D, parts, h, parts, w)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, parts**2, -1)  # (B, parts², D h w)


def text_segments(hidden: Tensor, parts: int, mask: Mask = None) -> tuple[Tensor, Tensor]:
    """The valid tokens of (B, N, D) in `parts` runs of nearly equal length, each averaged.

    Returns the segments (B, parts, D) and which of them hold a token, (B, parts).
    """
    valid = validity(mask, hidden)  # (B, N)
    hidden, counts = blanked(hidden, valid), valid.sum(1, keepdim=True)
    place = (valid.cumsum(1) - 1) * parts // counts.clamp(min=1)  # (B, N); padding may be on either side
    held = (place[:, None] == torch.arange(parts, device=place.device)[:, None]) & valid[:, None]  # (B, parts, N)
    sizes = held.sum(2, keepdim=True)
    return product(held.to(hidden), hidden) / sizes.clamp(min=1), sizes[..., 0] > 0


def _difference(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    gaps = product(student, student.transpose(-1, -2)) - product(teacher, teacher.transpose(-1, -2))
    gaps = gaps - gaps.diagonal(dim1=-2, dim2=-1).diag_embed()  # of a part with itself: rounding
    return masked_mean(gaps.square(), valid[..., :, None] & valid[..., None, :])
