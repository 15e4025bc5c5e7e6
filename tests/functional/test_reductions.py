"""What every formula is made of: precision kept, and derivatives of any order that stay finite."""

import pytest
import torch

from hfdistill.functional.classes import standardized_kl
from hfdistill.functional.reductions import unit
from hfdistill.functional.response import soft_target_kl


@pytest.mark.parametrize("classes", [3, 4, 6, 100])
def test_standard_deviations_keep_double_precision(classes: int) -> None:
    """The root of an integer is a float32 in PyTorch; where K - 1 is a square nobody sees it."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, 5, classes, generator=generator, dtype=torch.float64)
    scores = (both - both.mean(-1, keepdim=True)) / (1e-7 + both.std(-1, keepdim=True))
    torch.testing.assert_close(standardized_kl(*both, 2.0), soft_target_kl(*scores, 2.0), rtol=1e-12, atol=0.0)


def test_a_vector_of_length_0_has_finite_derivatives_of_second_order() -> None:
    """Gradient penalties and meta networks differentiate twice, and padding gives such vectors."""
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    result = unit(vectors)
    torch.testing.assert_close(result[1], torch.tensor([0.6, 0.8], dtype=torch.float64))
    (first,) = torch.autograd.grad(result.sin().sum(), vectors, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), vectors)
    assert first.isfinite().all()
    assert second.isfinite().all()
