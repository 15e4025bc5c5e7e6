"""Formulas that shape the supervision: other targets, other samples, other temperatures."""

import torch.nn.functional as F
from torch import Tensor

from hfdistill.functional.reductions import masked_mean, matched


def triplet(teacher: Tensor, student_positive: Tensor, student_negative: Tensor, margin: float = 5.0) -> Tensor:
    """Triplets of logits: the teacher's anchor attracts the student's own, repels its logits of another class.

    mean of max(0, |t(x) - s(x)| - |t(x) - s(x')| + margin), x' of another class than x. Oki et al. 2020, arXiv
    2004.08116. All: logits (..., K); margin: > 0, in units of the logits. 1e-6 in the norm keeps the gradient finite.
    """
    (positive, anchor, _), (negative, _, _) = matched(student_positive, teacher), matched(student_negative, teacher)
    return masked_mean(F.triplet_margin_loss(anchor, positive, negative, margin=margin, reduction="none"))
