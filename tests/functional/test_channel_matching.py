"""Matching guided distillation: exact assignment, permutations found again, reduced channels, margins."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.stats import truncnorm
from torch import Tensor

from hfdistill.functional.channel_matching import (
    channel_cost,
    channel_groups,
    margin_regression,
    negative_margin,
    reduced_channels,
)

PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(PROPERTY, max_examples=150)
@given(
    seed=SEEDS,
    students=st.integers(1, 12),
    teachers=st.integers(1, 30),
    kind=st.sampled_from(["real", "ties", "flat"]),
)
def test_an_assignment_is_the_cheapest(seed: int, students: int, teachers: int, kind: str) -> None:
    """Held to scipy's solver on the stacked costs, for every size that fits, ties and equal costs included."""
    teachers = max(students, teachers)
    cost = drawn(seed, students, teachers)
    cost = {"real": cost, "ties": cost.round(), "flat": torch.ones_like(cost)}[kind]
    for size in {1, teachers // students}:
        groups = channel_groups(cost, size)
        stacked = cost.repeat(size, 1)
        best = stacked[linear_sum_assignment(stacked.numpy())].sum()
        torch.testing.assert_close(cost.gather(1, groups).sum(), best)
        assert groups.shape == (students, size)
        assert groups.unique().numel() == groups.numel()
        assert torch.equal(groups, groups.sort(-1).values)


def test_by_default_every_student_channel_gets_as_many_as_there_are_for_all() -> None:
    """Three channels over two students of three each: the seventh and its cost are left over."""
    cost = torch.tensor([[0.0, 1, 0, 1, 0, 1, 9], [1.0, 0, 1, 0, 1, 0, 9]])
    assert channel_groups(cost).tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize(
    ("cost", "size"), [(torch.zeros(3, 2), None), (torch.zeros(2, 3), 2), (torch.full((2, 2), torch.nan), None)]
)
def test_what_cannot_be_assigned_is_refused(cost: Tensor, size: int | None) -> None:
    """A student channel without a teacher, or a NaN that would be nobody's or anybody's."""
    with pytest.raises(ValueError, match=r"each student channel takes its own. Use a narrower student"):
        channel_groups(cost, size)


@PROPERTY
@given(seed=SEEDS, width=st.integers(1, 12), scale=st.floats(0.1, 10))
def test_a_permutation_is_found_again(seed: int, width: int, scale: float) -> None:
    """The student's channels in another order and scale: the assignment undoes it, and nothing is left."""
    teacher = drawn(seed, 3, 5, width)
    order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    cost = channel_cost(scale * teacher[..., order], teacher)
    groups = channel_groups(cost)
    assert torch.equal(groups[:, 0], order)
    torch.testing.assert_close(cost.gather(1, groups), torch.zeros(width, 1, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.equal(reduced_channels(teacher, groups), teacher[..., order])


@PROPERTY
@given(seed=SEEDS)
def test_a_cost_is_two_minus_two_cosines(seed: int) -> None:
    """Between 0 for the same direction and 4 for the opposite one, averaged over the samples."""
    student, teacher = drawn(seed, 3, 5, 2), drawn(seed + 1, 3, 5, 4)
    cosines = torch.nn.functional.cosine_similarity(student[..., None], teacher[..., None, :], dim=1)  # (B, D_s, D_t)
    torch.testing.assert_close(channel_cost(student, teacher), (2 - 2 * cosines).mean(0))
    extreme = channel_cost(student, torch.cat([-student, student], -1))
    torch.testing.assert_close(extreme.diag(), torch.full((2,), 4.0, dtype=torch.float64))
    assert (extreme >= 0).all()


@PROPERTY
@given(seed=SEEDS, garbage=st.sampled_from([torch.nan, torch.inf, 1e30]))
def test_costs_are_of_real_tokens_and_real_samples(seed: int, garbage: float) -> None:
    """Else the assignment would depend on how rows are padded; an empty row has no direction."""
    student, teacher = drawn(seed, 3, 5, 2), drawn(seed + 1, 3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]])
    expected = (channel_cost(student[:1, :3], teacher[:1, :3]) + channel_cost(student[2:, 1:4], teacher[2:, 1:4])) / 2
    shut = mask[..., None] == 0
    cost = channel_cost(student.masked_fill(shut, garbage), teacher.masked_fill(shut, garbage), mask)
    torch.testing.assert_close(cost, expected)
    assert not channel_cost(student, teacher, torch.zeros(3, 5)).any()


def test_reductions_of_a_group() -> None:
    """Absolute maximum keeps the sign, the plain one does not look at it; the student learns, not the teacher."""
    teacher = torch.tensor([[1.0, -3.0, 2.0, -0.5]], requires_grad=True)
    groups = torch.tensor([[0, 1], [2, 3]])
    assert reduced_channels(teacher, groups).tolist() == [[-3.0, 2.0]]
    assert reduced_channels(teacher, groups, "max").tolist() == [[1.0, 2.0]]
    assert not reduced_channels(teacher, groups).requires_grad
    with pytest.raises(ValueError, match=r"reduction among \('absolute_max', 'max'\), got 'mean'"):
        reduced_channels(teacher, groups, "mean")


@PROPERTY
@given(mean=st.floats(-4, 4), deviation=st.floats(0.1, 5))
def test_a_margin_is_the_mean_of_what_is_negative(mean: float, deviation: float) -> None:
    """Of a Gaussian cut off at 0, far into both tails; where hardly anything is negative -3 deviations stand in."""
    margin = negative_margin(*(torch.tensor([value], dtype=torch.float64) for value in (mean, deviation)))
    if mean / deviation < 3.09:
        expected = truncnorm.mean(-torch.inf, -mean / deviation, mean, deviation)
        torch.testing.assert_close(margin.item(), float(expected), rtol=1e-6, atol=1e-9)
    elif mean / deviation > 3.1:
        assert margin.item() == pytest.approx(-3 * deviation)
    assert margin < 0


def test_a_margin_far_below_zero_stays_finite() -> None:
    """There the share of negative values is 1, or underflows to 0: neither may give a NaN."""
    margin = negative_margin(torch.tensor([-1e3, 1e3]), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(margin, torch.tensor([-1e3, -3.0]))


def test_margin_regression_leaves_a_student_below_a_negative_target_alone() -> None:
    """After the ReLU it is 0 already; above the target, or where the target is positive, it counts."""
    student = torch.tensor([[-2.0, 1.0, -1.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[-1.0, -9.0, 0.5, 3.0]], requires_grad=True)
    value = margin_regression(student, teacher, torch.full((4,), -0.5))
    assert value == 1.5**2 + 1.5**2 + 1
    value.backward()
    assert student.grad is not None
    assert student.grad.tolist() == [[0.0, 3.0, -3.0, -2.0]]
    assert teacher.grad is None
    plain = margin_regression(student, teacher, torch.full((4,), -torch.inf))
    assert plain == 10**2 + 1.5**2 + 1


def test_margin_regression_is_of_real_tokens() -> None:
    """A sum over padding would grow with it."""
    student, teacher = drawn(0, 2, 3, 4), drawn(1, 2, 3, 4)
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]]).bool()
    margin = torch.full((4,), -0.3, dtype=torch.float64)
    value = margin_regression(student.masked_fill(~mask[..., None], torch.nan), teacher, margin, mask)
    torch.testing.assert_close(value, margin_regression(student[mask], teacher[mask], margin))
    assert torch.autograd.gradcheck(
        lambda side: margin_regression(side, teacher, margin, mask), student.requires_grad_()
    )
