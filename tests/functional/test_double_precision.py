"""Formulas that count before they divide must not lose double precision on the way."""

import pytest
import torch

from hfdistill.functional.classes import standardized_kl
from hfdistill.functional.response import soft_target_kl


@pytest.mark.parametrize("classes", [3, 4, 6, 100])
def test_standard_deviations_keep_double_precision(classes: int) -> None:
    """The root of an integer is a float32 in PyTorch; where K - 1 is a square nobody sees it."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, 5, classes, generator=generator, dtype=torch.float64)
    scores = (both - both.mean(-1, keepdim=True)) / (1e-7 + both.std(-1, keepdim=True))
    torch.testing.assert_close(standardized_kl(*both, 2.0), soft_target_kl(*scores, 2.0), rtol=1e-12, atol=0.0)
