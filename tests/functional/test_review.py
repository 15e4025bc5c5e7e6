"""Knowledge review: pyramids over text and images against their definition, padding, and gates between two levels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as nn

from hfdistill.functional.review import gated_fusion, hierarchical_context

PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)


def sides(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    """A student and a teacher of one shape, in float64."""
    both = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return both[0].requires_grad_(), both[1]


def by_definition(student: Tensor, teacher: Tensor) -> Tensor:
    """The paper's loop over resolutions, for maps (B, D, places) or (B, D, rows, columns)."""
    pool = nn.adaptive_avg_pool1d if student.ndim == 3 else nn.adaptive_avg_pool2d
    total, weight, weights = nn.mse_loss(student, teacher), 1.0, 1.0
    for bins in (4, 2, 1):
        if bins < student.shape[2]:
            weight /= 2
            total = total + weight * nn.mse_loss(pool(student, bins), pool(teacher, bins))
            weights += weight
    return total / weights


@PROPERTY
@given(seed=SEEDS, tokens=st.integers(1, 11))
def test_a_line_is_pooled_as_defined(seed: int, tokens: int) -> None:
    """Bins overlap where 4 does not divide the length: lengths up to 11 have every such case."""
    student, teacher = sides(seed, 2, tokens, 3)
    expected = by_definition(student.transpose(1, 2), teacher.transpose(1, 2))
    torch.testing.assert_close(hierarchical_context(student, teacher), expected)


@PROPERTY
@given(seed=SEEDS, rows=st.integers(1, 7), columns=st.integers(1, 7))
def test_a_grid_is_pooled_on_both_axes(seed: int, rows: int, columns: int) -> None:
    """An image read as a line would average the end of one row with the beginning of the next."""
    student, teacher = sides(seed, 2, rows * columns, 3)
    grids = (side.transpose(1, 2).unflatten(2, (rows, columns)) for side in (student, teacher))
    value = hierarchical_context(student, teacher, sides=(rows, columns))
    torch.testing.assert_close(value, by_definition(*grids))


@PROPERTY
@given(seed=SEEDS, batch=st.integers(1, 4), tokens=st.integers(1, 9))
def test_padding_anywhere_is_cut_out(seed: int, batch: int, tokens: int) -> None:
    """Each sample is pooled over its own real tokens, wherever padding stands and whatever it holds."""
    student, teacher = sides(seed, batch, tokens, 3)
    mask = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(seed + 1)) < 0.6
    dirty = student.detach().masked_fill(~mask[..., None], torch.nan).requires_grad_()
    value = hierarchical_context(dirty, teacher.masked_fill(~mask[..., None], torch.inf), mask)
    alone = [
        by_definition(ours[real].T[None], theirs[real].T[None])
        for ours, theirs, real in zip(student, teacher, mask, strict=True)
        if real.any()
    ]
    expected = torch.stack(alone).mean() if alone else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value, dirty)
    assert gradient.isfinite().all()
    assert not gradient[~mask].any()


@PROPERTY
@given(seed=SEEDS, tokens=st.integers(1, 9))
def test_nothing_is_left_at_equality(seed: int, tokens: int) -> None:
    """A student that shows the teacher's map has nothing left to learn from it."""
    student, _ = sides(seed, 2, tokens, 3)
    value = hierarchical_context(student, student.detach().requires_grad_())
    (gradient,) = torch.autograd.grad(value, student)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 9])
def test_a_constant_gap_counts_the_same_at_every_length(tokens: int) -> None:
    """All resolutions see it alike, so their weights must add up to 1 however many fit."""
    teacher = torch.zeros(1, tokens, 2)
    torch.testing.assert_close(hierarchical_context(teacher + 3, teacher), torch.tensor(9.0))


def test_a_gap_that_averages_out_counts_less() -> None:
    """[1, -1] is 1 token by token and 0 on average: (1 + 0 / 2) / (1 + 1 / 2)."""
    student = torch.tensor([[[1.0], [-1.0]]])
    torch.testing.assert_close(hierarchical_context(student, torch.zeros(1, 2, 1)), torch.tensor(2 / 3))


def test_gradient_by_finite_differences_and_not_to_the_teacher() -> None:
    """What is detached or masked by mistake shows as a wrong derivative; a teacher must not learn."""
    student, teacher = sides(0, 3, 5, 2)
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]])
    assert torch.autograd.gradcheck(lambda side: hierarchical_context(side, teacher, mask), student)
    assert torch.autograd.gradcheck(
        lambda side: hierarchical_context(side[:, :4], teacher[:, :4], None, (2, 2)), student
    )
    watched = teacher.clone().requires_grad_()
    hierarchical_context(student, watched).backward()
    assert watched.grad is None


def test_half_precision_is_computed_in_float32() -> None:
    """Averages of many tokens in bfloat16 keep two digits, under autocast too."""
    student, teacher = (side.detach().float() for side in sides(0, 2, 6, 3))
    expected = hierarchical_context(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(hierarchical_context(student, teacher), expected)
    assert hierarchical_context(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("sides_", "mask"), [((2, 3), torch.ones(2, 6)), ((2, 2), None)])
def test_a_grid_that_is_none_is_refused(sides_: tuple[int, int], mask: Tensor | None) -> None:
    """Text has no columns, and patches that do not fill the grid would be read at wrong places."""
    student, teacher = sides(0, 2, 6, 3)
    with pytest.raises(ValueError, match=r"without a mask for a grid of"):
        hierarchical_context(student, teacher, mask, sides_)


@PROPERTY
@given(seed=SEEDS)
def test_gates_close_and_open(seed: int) -> None:
    """Each of the two is between 0 and 1, by the bias alone all the way."""
    own, passed = sides(seed, 2, 3, 4)
    closed = torch.zeros(2, 8, dtype=torch.float64)
    for bias, expected in (((0.0, 0.0), (own + passed) / 2), ((50.0, -50.0), own), ((-50.0, 50.0), passed)):
        fused = gated_fusion(own, passed, closed, torch.tensor(bias, dtype=torch.float64))
        torch.testing.assert_close(fused, expected)


@PROPERTY
@given(seed=SEEDS)
def test_gates_are_a_linear_map_of_both_at_each_place(seed: int) -> None:
    """One pair of gates for each token, from both levels side by side, as the paper's 1 x 1 convolution."""
    own, passed = sides(seed, 2, 3, 4)
    weight = torch.randn(2, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    bias = torch.tensor([0.3, -0.2], dtype=torch.float64)
    gates = nn.linear(torch.cat([own, passed], -1), weight, bias).sigmoid()  # (B, N, 2)
    expected = gates[..., :1] * own + gates[..., 1:] * passed
    torch.testing.assert_close(gated_fusion(own, passed, weight, bias), expected)


def test_levels_of_two_widths_are_refused() -> None:
    """They would be fused entry by entry."""
    with pytest.raises(ValueError, match=r"Bring both levels to one width"):
        gated_fusion(torch.zeros(2, 4), torch.zeros(2, 3), torch.zeros(2, 8), torch.zeros(2))
