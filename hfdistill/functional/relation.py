"""Formulas of relations between the samples of a batch, free of both widths."""

from torch import Tensor

from hfdistill.functional.reductions import blanked, masked_mean, matched, product, unit


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarities between the samples of a batch, free of both widths.

    |G_s - G_t|² / B², G the Gram matrix (B, B) of the flattened samples, its rows scaled to length 1. Tung and Mori
    2019, arXiv 1907.09682. student: (B, ...); teacher: (B, ...). No mask: pool padded tokens before.
    """
    flat = [blanked(side).flatten(1) for side in (student, teacher.detach())]  # (B, D)
    student, teacher, _ = matched(*[product(side, side.T) for side in flat])
    return masked_mean((unit(student) - unit(teacher)).square())
