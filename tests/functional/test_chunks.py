"""Means made block by block: the value and the gradient of the whole, at the memory of a block."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from hfdistill.functional import chunks
from hfdistill.functional.chunks import blockwise_mean

Shape = tuple[int, int, int, int]
SHAPES = some.tuples(*(some.integers(1, size) for size in (4, 4, 3, 5)))


def weighted(student: Tensor, shift: Tensor | None, valid: Tensor) -> tuple[Tensor, Tensor]:
    """A mean of cubes over valid rows and heads, and their number; shapes of (B, H, Q, K), and (B, H, 1)."""
    cubes = (student if shift is None else student + shift).pow(3).mean((2, 3))
    kept = valid[..., 0].expand_as(cubes)
    return cubes.masked_fill(~kept, 0).sum() / kept.sum().clamp(min=1), kept.sum()


def random_case(shape: Shape, seed: int, shared: tuple[bool, bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, a shift for all rows or heads where `shared` says so, and which rows and heads count: some, or none."""
    generator = torch.Generator().manual_seed(seed)
    ones = [1 if once else size for once, size in zip(shared, shape, strict=False)]
    maps = torch.randn(shape, generator=generator, dtype=torch.float64)
    shift = torch.randn(*ones, *shape[2:], generator=generator, dtype=torch.float64)
    return maps, shift, torch.rand(shape[0], shape[1], 1, generator=generator) < seed % 4 / 3


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(SHAPES, some.integers(1, 60), some.integers(0, 99), some.tuples(some.booleans(), some.booleans()))
def test_blocks_give_the_whole(shape: Shape, entries: int, seed: int, shared: tuple[bool, bool]) -> None:
    """Where the blocks end must change nothing, for tensors shared by rows or heads and blocks that hold nothing."""
    maps, shift, valid = random_case(shape, seed, shared)
    maps, shift = maps.requires_grad_(), shift.requires_grad_()
    expected = weighted(maps, shift, valid)[0]
    for whole_heads in (False, True):
        with mock.patch.object(chunks, "CACHED_ENTRIES", entries):
            value = blockwise_mean(weighted, (maps, shift), (valid,), shape, whole_heads)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        wanted, found = (
            torch.autograd.grad(3 * result, (maps, shift), retain_graph=True) for result in (expected, value)
        )
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_nothing_is_learnt_of_what_is_given() -> None:
    """The teacher's tensors may be on the tape of a shared base; None stays None."""
    maps, shift, valid = random_case((2, 2, 3, 3), 3, (False, False))
    shift.requires_grad_()
    assert not blockwise_mean(
        lambda m, n, s, v: weighted(m, s, v), (maps, None), (shift, valid), maps.shape
    ).requires_grad
    value = blockwise_mean(lambda m, s, v: weighted(m, s, v), (maps.requires_grad_(),), (shift, valid), maps.shape)
    value.backward()
    assert maps.grad is not None
    assert shift.grad is None


def test_without_a_gradient_none_is_computed() -> None:
    """Evaluation pays for the value alone."""
    maps, shift, valid = random_case((2, 2, 3, 3), 3, (False, False))
    taped = []

    def formula(*parts: Tensor) -> tuple[Tensor, Tensor]:
        taped.append(torch.is_grad_enabled())
        return weighted(*parts)

    with torch.no_grad():
        assert not blockwise_mean(formula, (maps.requires_grad_(), shift), (valid,), maps.shape).requires_grad
    assert taped == [False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_gradient_in_float32_until_it_is_scaled(dtype: torch.dtype) -> None:
    """A sum over many entries may overflow float16 and their mean vanish in it: loss scaling comes after both."""
    maps = torch.full((1, 1, 1000, 100), 3.0, dtype=dtype, requires_grad=True)

    def formula(part: Tensor) -> tuple[Tensor, int]:
        assert part.dtype == torch.float32
        return (1e4 * part.square()).mean(), part.numel()

    value = blockwise_mean(formula, (maps,), (), maps.shape)
    assert value.dtype == torch.float32
    (value * 64).backward()
    assert maps.grad is not None
    assert maps.grad.dtype == dtype
    torch.testing.assert_close(maps.grad, torch.full_like(maps, 6e4 * 64 / 1e5))


def test_autocast_does_not_reach_the_formula() -> None:
    """Its products are knowledge, not layers: in bfloat16 scores have two digits."""
    left, right = torch.randn(2, 1, 1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = blockwise_mean(lambda a, b: ((a @ b).mean(), 64), (left,), (right,), left.shape)
    assert torch.equal(value, (left @ right).mean())


def test_a_second_derivative_is_refused() -> None:
    """What it is made of is gone with the blocks; a gradient penalty would silently be one of 0."""
    maps = torch.randn(1, 1, 2, 2, requires_grad=True)
    value = blockwise_mean(lambda part: (part.pow(3).mean(), 4), (maps,), (), maps.shape)
    with pytest.raises(RuntimeError, match=r"expected one derivative.*create_graph=True"):
        torch.autograd.grad(value, maps, create_graph=True)


def test_a_batch_without_rows_is_a_mean_of_nothing() -> None:
    """0 with a gradient, as of any batch in which nothing counts."""
    maps = torch.zeros(0, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    value = blockwise_mean(weighted, (maps, None), (torch.ones(0, 2, 1, dtype=torch.bool),), maps.shape)
    value.backward()
    assert value == 0
