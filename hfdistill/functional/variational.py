"""Variational information distillation: the teacher's states as a Gaussian that the student predicts."""

import math

from torch import Tensor
from torch.nn import functional as F

from hfdistill.functional.reductions import Mask, masked_mean, matched

LEAST_VARIANCE = 1e-5
"""What is added to the variance, so that its logarithm is bounded."""


def variational_information(mean: Tensor, teacher: Tensor, scale: Tensor, mask: Mask = None) -> Tensor:
    """The information about the teacher that the student keeps: a Gaussian's negative log-likelihood.

    mean over valid tokens and D of ½ ((μ - t)² / v + log v), v = softplus(a) + 1e-5, one variance per channel, without
    the constant ½ log 2π; below 0 where v < 1 and the fit is good. Ahn et al. 2019 (VID), arXiv 1904.05835.
    mean: (..., D), μ predicted from the student; teacher: (..., D); scale: (D,), the unconstrained a.
    """
    if scale.shape != mean.shape[-1:]:
        raise ValueError(
            f"expected a scale of shape {[*mean.shape[-1:]]}, one per channel, got {[*scale.shape]}: every channel "
            "has a variance of its own. Make it for the teacher's width."
        )
    mean, teacher, valid = matched(mean, teacher, mask)
    variance = F.softplus(scale.to(mean.dtype)) + LEAST_VARIANCE  # (D,)
    terms = ((mean - teacher).square() / variance + variance.log()) / 2
    return masked_mean(terms.mean(-1), valid)


def initial_scale(variance: float = 5.0) -> float:
    """The a at which softplus(a) + 1e-5 is the variance; 5, as the method begins, gives 4.99323.

    Raises ValueError for a variance of at most 1e-5.
    """
    if not variance > LEAST_VARIANCE:
        raise ValueError(f"expected a variance above {LEAST_VARIANCE}, got {variance}: no scale gives it. Take 5.")
    return variance - LEAST_VARIANCE + math.log(-math.expm1(LEAST_VARIANCE - variance))
