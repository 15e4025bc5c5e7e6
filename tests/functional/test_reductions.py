"""What every formula is made of: precision kept, and derivatives of any order that stay finite."""

import pytest
import torch

from hfdistill.functional.classes import standardized_kl
from hfdistill.functional.reductions import real_length, spared, squared_distance, squares, unit
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


def test_the_sum_of_squares_is_that_of_its_parts() -> None:
    """It goes the short way only where nothing is infinite; either way value and gradient are the same."""
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    for places, filler in ((0, 0.0), (2, -torch.inf), (2, torch.inf)):
        student[0, :places] = teacher[0, :places] = filler
        own = student.clone().requires_grad_()
        expected, value = squares(own, teacher).sum(), squared_distance(own, teacher)
        assert value.isfinite()
        torch.testing.assert_close(value, expected, rtol=1e-14, atol=0.0)
        slopes = [torch.autograd.grad(result, own)[0] for result in (expected, value)]
        torch.testing.assert_close(*slopes, rtol=1e-14, atol=0.0)
    student[0, 0] = 0.0
    assert squared_distance(student, teacher) == torch.inf
    student[0, 0] = torch.nan
    assert squared_distance(student, teacher).isnan()


def test_a_mask_that_leaves_nothing_out_is_spared() -> None:
    """Filling what is not there costs a pass over every tensor; on an accelerator nothing is read to know it."""
    assert spared(None) is None
    assert spared(torch.ones(2, 3)) is None
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert spared(mask) is mask
    unread = torch.ones(2, 3, device="meta")
    assert spared(unread) is unread
    assert [real_length(mask), real_length(mask.flip(1)), real_length(0 * mask), real_length(unread)] == [2, 3, 1, 3]
