"""Local correlation: how maps and texts are cut into parts, and how the parts of a batch relate."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hfdistill.functional.local import local_correlation, map_patches, text_segments
from hfdistill.functional.relation import correlation_congruence

PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosines(parts: Tensor) -> Tensor:
    return F.normalize(parts, dim=1) @ F.normalize(parts, dim=1).T


def test_patches_are_squares_of_the_map() -> None:
    """Cut along the wrong axis, a patch would hold places from all over the map."""
    maps = torch.arange(32.0).reshape(1, 2, 4, 4)
    patches = map_patches(maps, 2)
    assert patches.shape == (1, 4, 8)
    for place, (row, column) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        expected = maps[0, :, row : row + 2, column : column + 2].flatten()
        assert sorted(patches[0, place].tolist()) == sorted(expected.tolist())
    with pytest.raises(ValueError, match="3 x 3 patches divide, got 4 x 4"):
        map_patches(maps, 3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_segments_are_runs_of_the_real_tokens(side: str) -> None:
    """Padding, before or behind, must neither be in a part nor decide where it ends."""
    hidden = torch.arange(7.0)[:, None]
    real = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]])
    real = real.flip(1) if side == "left" else real
    rows = torch.stack([hidden.masked_fill(mask[:, None] == 0, torch.nan) for mask in real])
    start = 0.0 if side == "right" else 2.0
    segments, held = text_segments(rows, 3, real)
    assert held.tolist() == [[True, True, True], [True, True, False], [False] * 3]
    torch.testing.assert_close(segments[0, :, 0], torch.tensor([0.5, 2.5, 4.0]) + start)
    torch.testing.assert_close(segments[1, :2, 0], torch.tensor([0.0, 1.0]) + (5.0 if side == "left" else 0.0))
    everything, held = text_segments(hidden[None], 1)
    assert everything.item() == 3.0
    assert held.all()


@PROPERTY
@given(seed=SEEDS)
def test_parts_that_do_not_count_might_as_well_not_be_there(seed: int) -> None:
    """An empty part of a short text is no vector; its angle to anything would be made up."""
    student, teacher, mask = drawn(seed, 3, 4, 2), drawn(seed + 1, 3, 4, 5), drawn(seed + 2, 3, 4) > -0.5
    gaps = (cosines(student.flatten(0, 1)) - cosines(teacher.flatten(0, 1))).square().reshape(3, 4, 3, 4)
    valid = (mask.flatten()[:, None] & mask.flatten()).reshape(3, 4, 3, 4)
    rows, places = torch.arange(3), torch.arange(4)
    student[~mask], teacher[~mask] = torch.nan, torch.inf
    student.requires_grad_()
    terms = local_correlation(student, teacher, mask)
    torch.testing.assert_close(terms.across, gaps[valid].mean())
    torch.testing.assert_close(terms.within, gaps[rows, :, rows][valid[rows, :, rows]].mean())
    torch.testing.assert_close(terms.same_place, gaps[:, places, :, places][valid[:, places, :, places]].mean())
    (gradient,) = torch.autograd.grad(sum(terms), student)
    assert gradient.isfinite().all()
    assert not gradient[~mask].any()


@PROPERTY
@given(seed=SEEDS)
def test_one_part_is_the_whole_row(seed: int) -> None:
    """Then nothing is left within a row, and the others are one sample-level comparison of cosines."""
    student, teacher = drawn(seed, 4, 1, 3), drawn(seed + 1, 4, 1, 6)
    terms = local_correlation(student, teacher)
    assert terms.within == 0
    torch.testing.assert_close(terms.same_place, terms.across)
    linear = correlation_congruence(student, teacher, gamma=0.5, order=1) * torch.e**2  # a kernel 1 + cos
    torch.testing.assert_close(terms.across, linear)


def test_each_part_has_its_own_scale() -> None:
    """Only angles are compared; a bright patch must not outweigh a dark one."""
    student, teacher = drawn(0, 3, 4, 2), drawn(1, 3, 4, 5)
    scaled = local_correlation(student * torch.linspace(1, 9, 12).reshape(3, 4, 1), teacher / 7)
    torch.testing.assert_close(scaled, local_correlation(student, teacher))
    assert max(local_correlation(student, 3 * student)) < 1e-24


def test_nothing_counts() -> None:
    """A batch of nothing but padding neither stops a run nor moves the student."""
    student = drawn(0, 2, 3, 4).requires_grad_()
    total = sum(local_correlation(student, drawn(1, 2, 3, 5), torch.zeros(2, 3)))
    assert total == 0
    assert not torch.autograd.grad(total, student)[0].any()
