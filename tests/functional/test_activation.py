"""Activation knowledge: invariances, definitions written out, values by hand, limits and errors."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfdistill.functional.activation import (
    activation_attention,
    activation_map,
    channel_kl,
    neuron_selectivity,
    projected_mse,
    token_gram,
    token_similarity,
)

WIDTH = 4
PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.tuples(st.integers(1, 4), st.integers(2, 5))  # B, N


def random(seed: int, *shape: int) -> Tensor:
    """Return random float64 numbers of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(seed: int, batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Return a student's states (B, N, D), with a gradient, and a teacher's."""
    student, teacher = random(seed, 2, batch, tokens, WIDTH)
    return student.requires_grad_(), teacher


def orthogonal(seed: int, width: int) -> Tensor:
    """Return a random rotation or reflection (D, D)."""
    return torch.linalg.qr(random(seed, width, width))[0]


@pytest.mark.parametrize("reduction", ["mean", "paper"])
@PROPERTY
@given(seed=SEEDS, sizes=SIZES, scale=st.floats(1e-2, 1e2))
def test_activation_attention_sees_where_not_what(
    reduction: str, seed: int, sizes: tuple[int, int], scale: float
) -> None:
    """With power 2 it knows neither the axes nor the size of the states: only which token is active."""
    student, teacher = pair(seed, *sizes)
    turned = scale * student @ orthogonal(seed, WIDTH)
    value = activation_attention(turned, teacher[..., torch.randperm(WIDTH)] / scale, reduction=reduction)
    torch.testing.assert_close(value, activation_attention(student, teacher, reduction=reduction))


def test_activation_attention_by_hand() -> None:
    """One is active at the first token, the other at the second: maps (1, 0) and (0, 1)."""
    student, teacher = torch.tensor([[[3.0], [0.0]]]), torch.tensor([[[0.0, 0.0], [0.0, 7.0]]])
    assert activation_attention(student, teacher).item() == 1.0
    assert activation_attention(student, teacher, reduction="paper").item() == pytest.approx(2**0.5)
    states = torch.tensor([[[1.0, -1.0], [2.0, 0.0], [9.0, 9.0]]])
    expected = torch.tensor([[2.0, 4.0, 0.0]]) / 20**0.5
    torch.testing.assert_close(activation_map(states, torch.tensor([[1, 1, 0]])), expected)
    torch.testing.assert_close(activation_map(states[:, :2], power=1.0), torch.full((1, 2), 0.5**0.5))


def kernel_values(kernel: str, left: Tensor, right: Tensor) -> Tensor:
    """Return k of all channels (D, N) with all others (D', N), by its definition."""
    products = (left[:, None] * right[None]).sum(-1)
    squares = (left[:, None] - right[None]).square().sum(-1)
    return {"polynomial": products**2, "linear": products, "gaussian": (-squares / (2 * 0.7)).exp()}[kernel]


@pytest.mark.parametrize("kernel", ["polynomial", "linear", "gaussian"])
@PROPERTY
@given(seed=SEEDS, tokens=st.integers(1, 6))
def test_selectivity_is_the_discrepancy_by_its_definition(kernel: str, seed: int, tokens: int) -> None:
    """The products are regrouped to save memory; the three means of kernels are what they must add up to."""
    student, teacher = random(seed, tokens, 3), random(seed + 1, tokens, 5)
    ours, theirs = (side.T / side.T.norm(dim=1, keepdim=True) for side in (student, teacher))
    means = [kernel_values(kernel, *sides).mean() for sides in ((theirs, theirs), (ours, ours), (ours, theirs))]
    variance = 0.7 if kernel == "gaussian" else None
    value = neuron_selectivity(student[None], teacher[None], None, kernel, variance)
    torch.testing.assert_close(value, means[0] + means[1] - 2 * means[2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel", ["polynomial", "linear", "gaussian"])
@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_selectivity_is_a_set_of_directions(kernel: str, seed: int, sizes: tuple[int, int]) -> None:
    """Channels have no order and no size in it: nothing says which of the teacher's is which of the student's."""
    student, teacher = pair(seed, *sizes)
    sizes_of_channels = random(seed, sizes[0], 1, WIDTH).exp()
    shuffled = (student * sizes_of_channels)[..., torch.randperm(WIDTH)]
    value = neuron_selectivity(shuffled, teacher, None, kernel)
    torch.testing.assert_close(value, neuron_selectivity(student, teacher, None, kernel))


def test_measured_variance_is_each_rows_mean_squared_distance() -> None:
    """Of the row, not of the batch, or a loss would depend on which rows share one; and no gradient goes through."""
    student, teacher = pair(0, 1, 5)
    ours, theirs = (side[0].T / side[0].T.norm(dim=1, keepdim=True) for side in (student.detach(), teacher))
    variance = (ours[:, None] - theirs[None]).square().sum(-1).mean().item()
    measured = neuron_selectivity(student, teacher, None, "gaussian")
    given_value = neuron_selectivity(student, teacher, None, "gaussian", variance)
    torch.testing.assert_close(measured, given_value)
    gradients = [torch.autograd.grad(value, student)[0] for value in (measured, given_value)]
    torch.testing.assert_close(*gradients)


def test_selectivity_of_channels_that_are_all_alike() -> None:
    """Their squared distances are rounding errors, some below 0, and so is the variance that divides them."""
    for seed in range(20):
        alike = random(seed, 1, 6, 1).float().expand(1, 6, 5) * torch.arange(1.0, 6.0)
        for variance in (None, 1e-9):
            student = alike.clone().requires_grad_()
            loss = neuron_selectivity(student, alike[..., :3], None, "gaussian", variance)
            assert loss.abs() < (0.2 if variance is None else 2)
            assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_gram_by_hand() -> None:
    """The student's tokens are (1, 1) and (0, 2), the teacher's 3 and 0: products over the width, 4 pairs."""
    student, teacher = torch.tensor([[[1.0, 1.0], [0.0, 2.0]]]), torch.tensor([[[3.0], [0.0]]])
    value = token_gram(student, student, teacher, teacher)
    assert value.item() == ((1 - 9) ** 2 + 1 + 1 + 2**2) / 4
    crossed = token_gram(student, student.flip(1), teacher, teacher)
    assert crossed.item() == ((1 - 9) ** 2 + 1 + 2**2 + 1) / 4


@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_similarity_sees_angles_alone(seed: int, sizes: tuple[int, int]) -> None:
    """Rotations of either space and lengths of tokens are not knowledge about which tokens are alike."""
    student, teacher = pair(seed, *sizes)
    turned = student @ orthogonal(seed, WIDTH) * random(seed, *sizes, 1).exp()
    expected = token_similarity(student, teacher)
    torch.testing.assert_close(token_similarity(turned, teacher @ orthogonal(seed + 1, WIDTH)), expected)


def test_similarity_by_hand() -> None:
    """Two equal tokens against two orthogonal ones: 2 of 4 cosines are off by 1."""
    student, teacher = torch.tensor([[[1.0, 0.0], [5.0, 0.0]]]), torch.eye(2)[None]
    assert token_similarity(student, teacher).item() == 0.5


def test_the_gradient_of_similarity_is_across_the_tokens() -> None:
    """Lengths do not matter to the value, so nothing may pull along them: the part that the authors' code leaves."""
    student, teacher = pair(0, 2, 4)
    (gradient,) = torch.autograd.grad(token_similarity(student, teacher), student)
    assert (gradient * student).sum(-1).abs().max() < 1e-12


@PROPERTY
@given(seed=SEEDS, sizes=SIZES, temperature=st.floats(0.5, 10))
def test_channels_are_distributions_over_tokens(seed: int, sizes: tuple[int, int], temperature: float) -> None:
    """A constant per channel is nothing, nor is the order of tokens; a softmax over classes is the old mistake."""
    student, teacher = pair(seed, *sizes)
    expected = channel_kl(student, teacher, temperature)
    order = torch.randperm(sizes[1])
    shifted = (student + 30 * random(seed, sizes[0], 1, WIDTH))[:, order]
    torch.testing.assert_close(channel_kl(shifted, teacher[:, order], temperature), expected)
    level = random(seed, sizes[0], 1, WIDTH).expand_as(student)
    assert channel_kl(level, level.flip(-1), temperature).abs() < 1e-12


@PROPERTY
@given(seed=SEEDS, sizes=SIZES, temperature=st.floats(0.5, 10))
def test_gradient_of_channels_in_closed_form(seed: int, sizes: tuple[int, int], temperature: float) -> None:
    """T / (B D) (phi_s - phi_t), with phi over the tokens."""
    student, teacher = pair(seed, *sizes)
    (gradient,) = torch.autograd.grad(channel_kl(student, teacher, temperature), student)
    difference = (student / temperature).softmax(1) - (teacher / temperature).softmax(1)
    torch.testing.assert_close(gradient, (temperature / (sizes[0] * WIDTH) * difference).detach())


def test_channels_shut_out_on_both_sides_and_extreme_ones() -> None:
    """A vocabulary padded with -inf, one token at -inf, and logits that underflow: nothing is NaN."""
    student, teacher = (side.detach().clone() for side in pair(0, 2, 3))
    expected = channel_kl(student, teacher)
    shut = [torch.nn.functional.pad(side, (0, 1), value=-float("inf")) for side in (student, teacher)]
    shut[0].requires_grad_()
    loss = channel_kl(*shut)
    torch.testing.assert_close(loss, expected * WIDTH / (WIDTH + 1))
    assert torch.autograd.grad(loss, shut[0])[0].isfinite().all()
    student[0, 1, 2] = teacher[0, 1, 2] = -float("inf")
    kept = [side[:1, [0, 2], 2:3] for side in (student, teacher)]
    torch.testing.assert_close(channel_kl(student[:1, :, 2:3], teacher[:1, :, 2:3]), channel_kl(*kept))
    assert channel_kl(torch.tensor([[[1e4], [-1e4]]]), torch.tensor([[[-1e4], [1e4]]])).item() == pytest.approx(2e4)
    assert channel_kl(student[:, :1], teacher[:, :1]).item() == 0.0


def test_normalised_projections_cannot_collapse() -> None:
    """Both sides are trained: without the normalisation, shrinking them would lower the loss to 0."""
    student, projected = (side.detach().requires_grad_() for side in pair(0, 2, 3))
    loss = projected_mse(student, projected)
    gradients = torch.autograd.grad(loss, (student, projected))
    assert all(gradient.any() for gradient in gradients)
    torch.testing.assert_close(projected_mse(0.1 * student, 0.1 * projected + 5), loss, rtol=1e-2, atol=0)
    assert loss > 0.1
    opposite = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
    assert projected_mse(100 * opposite, -3 * opposite).item() == pytest.approx(4.0, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, t: activation_attention(s, t[:, :2]), r"expected rows \[2, 3\] as in the first input"),
        (lambda s, t: activation_attention(s, t, power=0.5), r"expected a power of at least 1, got 0.5.*Take 2"),
        (lambda s, t: activation_attention(s, t, reduction="sum"), r"expected a reduction among .*'mean', 'paper'"),
        (lambda s, t: neuron_selectivity(s, t, kernel="rbf"), r"expected a kernel among .*'gaussian'.*got 'rbf'"),
        (lambda s, t: neuron_selectivity(s, t, variance=0.0), r"expected a variance above 0, got 0.0.*None measures"),
        (lambda s, t: neuron_selectivity(s, t, torch.ones(2, 4)), r"expected rows \[2, 4\] as in the mask"),
        (
            lambda s, t: token_gram(s, s, t, s[..., :2]),
            r"expected one width within a model, got \[4, 4\] and \[4, 2\]",
        ),
        (lambda s, t: channel_kl(s, t[..., :2]), r"expected one shape on both sides, .*\[2, 3, 2\] \(teacher\)"),
        (lambda s, t: channel_kl(s, t, 0.0), r"expected a temperature above 0, got 0.0"),
        (lambda s, t: projected_mse(s, t[..., :2]), r"expected one shape .*\(projected teacher\).*student's width"),
        (lambda s, t: token_similarity(s[0], t), r"expected rows \[3\] as in the first input"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[Tensor, Tensor], Tensor], message: str) -> None:
    """Broadcasting would give a number all the same."""
    student, teacher = pair(0, 2, 3)
    with pytest.raises(ValueError, match=message):
        call(student, teacher)
