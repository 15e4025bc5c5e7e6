"""Formulas of contrast: near one's own teacher vector, far from those of others."""

from torch import Tensor

from hfdistill.functional.reductions import Mask, blanked, masked_mean, matched, unit, validity


def cos_nce(
    student: Tensor, teacher: Tensor, negatives: Tensor, negative_mask: Mask = None, mask: Mask = None
) -> Tensor:
    """Contrast by angle: near one's own teacher vector, far from those of other samples; between 0 and 4.

    mean over valid rows of Σ_i [2 - (g(n_i, s) - g(t, s))] / 2M + g(t, s), g = 1 - cos, over the row's M valid
    negatives; a row without any: g(t, s). Fu et al. 2021 (LRC-BERT), arXiv 2012.07335. student, teacher: (B, D);
    negatives: teacher vectors (B, M, D), M >= 0; negative_mask: (B, M); mask: (B,).
    """
    student, teacher, valid = matched(student, teacher, mask)
    if negatives.ndim != 3 or (negatives.shape[0], negatives.shape[2]) != student.shape:
        raise ValueError(
            f"expected negatives (B, M, D) for rows {[*student.shape]}, got {[*negatives.shape]}. Expand shared ones."
        )
    real, student = validity(negative_mask, negatives), unit(student)
    near = 1 - (student * unit(teacher)).sum(-1)  # (B,)
    far = 1 - (unit(blanked(negatives.detach(), real)) * student[:, None]).sum(-1)  # (B, M)
    margins = (1 - (far - near[:, None]) / 2).masked_fill(~real, 0).sum(-1) / real.sum(-1).clamp(min=1)
    return masked_mean(margins + near, valid)
