"""Activation knowledge: what every formula holds to, at equality, under masks, in half precision, at the extremes."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfdistill.functional.activation import (
    activation_attention,
    channel_kl,
    neuron_selectivity,
    projected_mse,
    token_gram,
    token_similarity,
)

WIDTH = 4
GARBAGE = (float("nan"), float("inf"), -float("inf"), 1e30)
PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.tuples(st.integers(1, 4), st.integers(2, 5))  # B, N


@dataclass(frozen=True)
class Formula:
    """A formula of two (B, N, D) and a mask, and what its mean is over: rows, tokens, or pairs of tokens."""

    name: str
    call: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    mean_over: str
    width_free: bool = True


FORMULAS = (
    Formula("attention, code", activation_attention, "tokens"),
    Formula("attention, power 1", lambda s, t, m: activation_attention(s, t, m, 1.0), "tokens"),
    Formula("attention, paper", lambda s, t, m: activation_attention(s, t, m, 2.0, "paper"), "rows"),
    Formula("selectivity, polynomial", neuron_selectivity, "rows"),
    Formula("selectivity, linear", lambda s, t, m: neuron_selectivity(s, t, m, "linear"), "rows"),
    Formula("selectivity, gaussian", lambda s, t, m: neuron_selectivity(s, t, m, "gaussian"), "rows"),
    Formula("gram", lambda s, t, m: token_gram(s, s, t, t, m), "pairs"),
    Formula("similarity", token_similarity, "rows"),
    Formula("channel", lambda s, t, m: channel_kl(s, t, 2.0, m), "rows", width_free=False),
    Formula("projected", projected_mse, "tokens", width_free=False),
)
EVERY = pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.name)
WIDTH_FREE = pytest.mark.parametrize(
    "formula", [formula for formula in FORMULAS if formula.width_free], ids=lambda formula: formula.name
)


def random(seed: int, *shape: int) -> Tensor:
    """Return random float64 numbers of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(seed: int, batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Return a student's states (B, N, D), with a gradient, and a teacher's."""
    student, teacher = random(seed, 2, batch, tokens, WIDTH)
    return student.requires_grad_(), teacher


def token_mask(seed: int, batch: int, tokens: int) -> Tensor:
    """Return a mask with a valid token in the first row; other rows may be masked."""
    mask = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(seed + 1)) < 0.6
    mask[0, 0] = True
    return mask


@EVERY
@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_equality_is_the_bottom(formula: Formula, seed: int, sizes: tuple[int, int]) -> None:
    """A student that is there must neither pay nor be pushed; anywhere else the loss is above 0."""
    student, teacher = pair(seed, *sizes)
    mask = token_mask(seed, *sizes)
    loss = formula.call(student, student.detach(), mask)
    (gradient,) = torch.autograd.grad(loss, student)
    assert abs(loss.item()) < 1e-12
    assert gradient.abs().max() < 1e-7
    assert formula.call(student, teacher, mask) >= -1e-12


@EVERY
@PROPERTY
@given(seed=SEEDS, sizes=SIZES, student_garbage=st.sampled_from(GARBAGE), teacher_garbage=st.sampled_from(GARBAGE))
def test_masked_tokens_are_not_there(
    formula: Formula, seed: int, sizes: tuple[int, int], student_garbage: float, teacher_garbage: float
) -> None:
    """Whatever padding holds, each row counts as if cut to its valid tokens, and only they are moved."""
    student, teacher = pair(seed, *sizes)
    mask = token_mask(seed, *sizes)
    dirty = student.detach().masked_fill(~mask[..., None], student_garbage).requires_grad_()
    loss = formula.call(dirty, teacher.masked_fill(~mask[..., None], teacher_garbage), mask)
    (gradient,) = torch.autograd.grad(loss, dirty)
    assert not gradient[~mask].any()
    counts = [int(row.sum()) for row in mask if row.any()]
    shares = {"rows": [1 for _ in counts], "tokens": counts, "pairs": [count**2 for count in counts]}[
        formula.mean_over
    ]
    alone = [
        formula.call(own[row][None], other[row][None], None)
        for own, other, row in zip(student, teacher, mask, strict=True)
        if row.any()
    ]
    expected = torch.stack([value * share for value, share in zip(alone, shares, strict=True)]).sum() / sum(shares)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, student)[0])


@EVERY
@pytest.mark.parametrize("garbage", GARBAGE)
def test_nothing_valid(formula: Formula, garbage: float) -> None:
    """A batch that is all padding gives 0 with a zero gradient, not 0 / 0."""
    student = torch.full((2, 3, WIDTH), garbage, requires_grad=True)
    loss = formula.call(student, torch.full((2, 3, WIDTH), garbage), torch.zeros(2, 3))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, student)[0].any()


@WIDTH_FREE
def test_widths_may_differ_and_the_teacher_gets_no_gradient(formula: Formula) -> None:
    """No projector is needed, so none would teach the teacher's space to the student."""
    student, teacher = random(0, 2, 3, WIDTH).requires_grad_(), random(1, 2, 3, 7).requires_grad_()
    formula.call(student, teacher, None).backward()
    assert student.grad is not None
    assert student.grad.any()
    assert teacher.grad is None


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(formula: Formula, dtype: torch.dtype) -> None:
    """Squares of states, and sums over tokens, leave the range and the digits of half precision."""
    student, teacher = (side.detach().to(dtype) for side in pair(0, 3, 5))
    exact = formula.call(student.float(), teacher.float(), None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = formula.call(student, teacher, None)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact)


@EVERY
def test_gradients_of_gradients_are_finite(formula: Formula) -> None:
    """Roots and lengths have infinite slopes at 0: where the student has arrived, and at padding."""
    states = torch.arange(24.0, dtype=torch.float64).view(2, 3, WIDTH)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    for teacher, valid in ((states, None), (states.flip(0), mask), (torch.zeros_like(states), None)):
        student = states.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(formula.call(student, teacher, valid), student, create_graph=True)
        (second,) = torch.autograd.grad(gradient.sum(), student)
        assert gradient.isfinite().all()
        assert second.isfinite().all()


@EVERY
def test_dead_states_are_finite(formula: Formula) -> None:
    """A state of zeros has no direction: it is left alone, on either side and on both."""
    states, dead = torch.arange(24.0).view(2, 3, WIDTH), torch.zeros(2, 3, WIDTH)
    for student, teacher in ((dead, states), (states, dead), (dead, dead)):
        own = student.clone().requires_grad_()
        loss = formula.call(own, teacher, None)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, own)[0].isfinite().all()


@EVERY
def test_large_states_are_finite(formula: Formula) -> None:
    """Outlier channels of language models are thousands of times larger than the rest."""
    student, teacher = (1e4 * side.detach().float() for side in pair(0, 2, 3))
    student.requires_grad_()
    loss = formula.call(student, teacher, None)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, student)[0].isfinite().all()
