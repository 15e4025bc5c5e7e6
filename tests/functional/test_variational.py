"""Variational information: masks, precision, its minimum and its start in closed form, errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfdistill.functional.variational import initial_scale, variational_information

WIDTH = 4
PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 5))  # B, N


def inputs(seed: int, batch: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return predicted means and a teacher's states (B, N, D), and scales (D,); the first and last with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    mean, teacher = torch.randn(2, batch, tokens, WIDTH, generator=generator, dtype=torch.float64)
    scale = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    return mean.requires_grad_(), teacher, scale.requires_grad_()


@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_it_is_a_gaussians_likelihood(seed: int, sizes: tuple[int, int]) -> None:
    """Of the valid tokens alone, without the constant, and averaged: torch's own distribution says the same."""
    mean, teacher, scale = inputs(seed, *sizes)
    mask = torch.rand(sizes, generator=torch.Generator().manual_seed(seed)) < 0.7
    mask[0, 0] = True
    deviation = (torch.nn.functional.softplus(scale) + 1e-5).sqrt()
    likelihood = torch.distributions.Normal(mean[mask], deviation).log_prob(teacher[mask])
    dirty = teacher.masked_fill(~mask[..., None], float("nan"))
    value = variational_information(mean, dirty, scale, mask)
    torch.testing.assert_close(value, -likelihood.mean() - math.log(2 * math.pi) / 2)
    gradients = torch.autograd.grad(value, (mean, scale))
    assert not gradients[0][~mask].any()
    assert all(gradient.isfinite().all() for gradient in gradients)


@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_the_best_variance_is_the_mean_squared_residual(seed: int, sizes: tuple[int, int]) -> None:
    """There the scale has no gradient, so it is learnt and neither grows nor shrinks for ever."""
    mean, teacher, _ = inputs(seed, *sizes)
    residual = (mean - teacher).square().mean((0, 1)).detach()
    scale = (residual - 1e-5).expm1().log().requires_grad_()
    (gradient,) = torch.autograd.grad(variational_information(mean, teacher, scale), scale)
    assert gradient.abs().max() < 1e-9


def test_the_start() -> None:
    """A variance of 5 everywhere: (MSE / 5 + log 5) / 2, and the constant that the method is known by."""
    mean, teacher, _ = inputs(0, 2, 3)
    assert initial_scale() == pytest.approx(4.993229182713622, rel=1e-12)
    scale = torch.full((WIDTH,), initial_scale(), dtype=torch.float64)
    expected = ((mean - teacher).square().mean() / 5 + math.log(5)) / 2
    torch.testing.assert_close(variational_information(mean, teacher, scale), expected)


@pytest.mark.parametrize("variance", [1e-3, 1.0, 5.0, 1e4])
def test_any_start_is_what_softplus_gives_back(variance: float) -> None:
    """log(exp(v) - 1) overflows above 700 and loses its digits near 0."""
    scale = torch.tensor(initial_scale(variance), dtype=torch.float64)
    assert (torch.nn.functional.softplus(scale) + 1e-5).item() == pytest.approx(variance, rel=1e-9)


def test_a_good_fit_is_below_0_and_finite() -> None:
    """It is no distance; and a scale of -1e4 underflows to the smallest variance, not to log 0."""
    mean, _, _ = inputs(0, 2, 3)
    scale = torch.full((WIDTH,), -1e4, dtype=torch.float64, requires_grad=True)
    value = variational_information(mean, mean.detach(), scale)
    assert value.item() == pytest.approx(math.log(1e-5) / 2)
    assert torch.autograd.grad(value, scale)[0].isfinite().all()


def test_nothing_valid_gives_zero_with_a_gradient() -> None:
    """The variance of padding is not information either."""
    mean, teacher, scale = inputs(0, 2, 3)
    value = variational_information(mean, teacher, scale, torch.zeros(2, 3))
    assert value.item() == 0.0
    assert not any(gradient.any() for gradient in torch.autograd.grad(value, (mean, scale)))


def test_half_precision_is_computed_in_float32_and_the_teacher_gets_no_gradient() -> None:
    """The logarithm of a variance in bfloat16 has two digits."""
    mean, teacher, scale = (side.detach().bfloat16() for side in inputs(0, 2, 3))
    teacher.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = variational_information(mean.requires_grad_(), teacher, scale)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, variational_information(mean.float(), teacher.float(), scale.float()))
    value.backward()
    assert teacher.grad is None
    assert mean.grad is not None


def test_what_does_not_fit_is_refused() -> None:
    """Broadcasting one variance over all channels would run and be another method."""
    mean, teacher, scale = inputs(0, 2, 3)
    with pytest.raises(ValueError, match=r"expected a scale of shape \[4\], one per channel, got \[1\]"):
        variational_information(mean, teacher, scale[:1])
    with pytest.raises(ValueError, match=r"expected one shape on both sides"):
        variational_information(mean, teacher[:, :2], scale)
    with pytest.raises(ValueError, match=r"expected a variance above 1e-05, got 0.0"):
        initial_scale(0.0)
