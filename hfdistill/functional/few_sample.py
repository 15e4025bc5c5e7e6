"""The formula of few-sample recovery: a linear map in closed form."""

import torch
from torch import Tensor

from hfdistill.functional.reductions import Mask, blanked, validity


def pointwise_map(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """The pointwise linear map that brings a block's outputs closest to the teacher's.

    Q = argmin |X_s Qᵀ - X_t|, of least norm where several are, over all valid rows. Li et al. 2020 (FSKD), arXiv
    1812.01839. student: (..., D_s); teacher: (..., D_t). Returns (D_t, D_s), without a gradient, computed in float64.
    There is one solution only with D_s independent rows.
    """
    valid = validity(mask, student, teacher)
    ours, theirs = (blanked(side.detach(), valid)[valid].double().cpu() for side in (student, teacher))
    solution: Tensor = torch.linalg.lstsq(ours, theirs, driver="gelsd").solution.T  # (D_t, D_s)
    return solution.to(student.device, torch.float64 if student.dtype == torch.float64 else torch.float32)
