"""Contextual relations: written out pair by pair and triple by triple, and what they are free of."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfdistill.functional.context import cosine_row_kl, relation_angle, relative_distance_mse, triple_count

PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
Relation = Callable[..., Tensor]
RELATIONS: dict[str, Relation] = {
    "distance": relative_distance_mse,
    "cosine": cosine_row_kl,
    "angle": relation_angle,
    "angle of neighbours": lambda student, teacher, mask=None: relation_angle(student, teacher, mask, window=3),
}
EVERY = pytest.mark.parametrize("relation", RELATIONS.values(), ids=RELATIONS)


def sides(seed: int, batch: int = 3, items: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """A student of width 4, a teacher of width 6, and a mask with gaps in it."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, items, width, generator=generator, dtype=torch.float64) for width in (4, 6))
    mask = torch.rand(batch, items, generator=generator) < 0.7
    mask[0] = True
    return student, teacher, mask


def angle(at: Tensor, first: Tensor, second: Tensor) -> float:
    """Cosine of the angle at a point, 0 where it has none."""
    lengths = (first - at).norm() * (second - at).norm()
    return ((first - at) @ (second - at) / lengths).item() if lengths > 0 else 0.0


def smooth_l1(first: float, second: float) -> float:
    gap = abs(first - second)
    return gap**2 / 2 if gap < 1 else gap - 0.5


def real(side: Tensor, mask: Tensor, row: int) -> Tensor:
    return side[row][mask[row]]


@PROPERTY
@given(seed=SEEDS)
def test_distances_are_in_units_of_their_mean_in_the_sentence(seed: int) -> None:
    """A mean over the batch, or one that counts a token's distance to itself, is another loss."""
    student, teacher, mask = sides(seed)
    total = pairs = 0.0
    for row in range(len(mask)):
        gaps = []
        for side in (student, teacher):
            distances = torch.cdist(real(side, mask, row), real(side, mask, row)).square()
            others = max(len(distances) * (len(distances) - 1), 1)
            mean = distances.sum() / others
            gaps.append(distances / mean if mean > 0 else distances)
        total += (gaps[0] - gaps[1]).square().sum().item()
        pairs += gaps[0].numel()
    assert relative_distance_mse(student, teacher, mask).item() == pytest.approx(total / pairs, rel=1e-9)


@PROPERTY
@given(seed=SEEDS)
def test_cosines_are_distributions_over_the_other_tokens(seed: int) -> None:
    """Over itself each token would only look at itself."""
    student, teacher, mask = sides(seed)
    total = 0.0
    for row in range(len(mask)):
        ours, theirs = (torch.nn.functional.normalize(real(side, mask, row), dim=-1) for side in (student, teacher))
        for item in range(len(ours) if len(ours) > 1 else 0):
            others = torch.arange(len(ours)) != item
            first, second = ((side @ side[item])[others].log_softmax(0) for side in (ours, theirs))
            total += (second.exp() * (second - first)).sum().item()
    pairs = mask.sum(1).square().sum().item()
    assert cosine_row_kl(student, teacher, mask).item() == pytest.approx(total / pairs, rel=1e-9)


@PROPERTY
@given(seed=SEEDS, window=st.sampled_from([None, 3, 5, 7, 21]))
def test_angles_are_those_of_every_triple_in_the_window(seed: int, window: int | None) -> None:
    """Windows count places, so that a masked token between two real ones keeps them apart."""
    student, teacher, mask = sides(seed)
    reach = math.inf if window is None else window // 2
    total, triples = 0.0, 0
    for row, (i, j, k) in product(range(len(mask)), product(range(5), repeat=3)):
        if mask[row][[i, j, k]].all() and max(abs(i - j), abs(i - k)) <= reach:
            ours, theirs = (angle(*side[row][[i, j, k]]) for side in (student, teacher))
            total, triples = total + smooth_l1(ours, theirs), triples + 1
    assert relation_angle(student, teacher, mask, window).item() == pytest.approx(total / triples, rel=1e-9)
    assert triple_count(mask, window) == triples


def test_hand_values() -> None:
    """Three tokens on a line, 0, 1 and 3, against an equilateral triangle."""
    line = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    triangle = torch.eye(3, dtype=torch.float64)
    # squared distances 1, 4, 9 of mean 14/3 against 1, 1, 1; twice each among 9 pairs
    expected = 2 * sum((3 * squared / 14 - 1) ** 2 for squared in (1, 4, 9)) / 9
    assert relative_distance_mse(line, triangle).item() == pytest.approx(expected)
    # cosines 1, -1, 1 at the three tokens against 1/2: gaps 1/2, 3/2, 1/2, each in two triples of 27
    assert relation_angle(line, triangle).item() == pytest.approx(2 * (1 / 8 + 1 + 1 / 8) / 27)


@EVERY
@PROPERTY
@given(seed=SEEDS)
def test_nothing_to_learn_from_oneself(relation: Relation, seed: int) -> None:
    """Also where one side is the other turned and, but for cosines, moved and scaled: relations are free of it."""
    student, _, mask = sides(seed)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    turned = student @ turn if relation is cosine_row_kl else 3 * student @ turn + 2
    for other in (student, turned):
        ours = student.clone().requires_grad_()
        value = relation(ours, other, mask)
        (gradient,) = torch.autograd.grad(value, ours)
        assert value.abs() < 1e-12
        assert gradient.abs().max() < 1e-9


def test_cosines_are_free_of_each_tokens_length() -> None:
    """Distances and angles are not."""
    student, teacher, mask = sides(1)
    lengths = torch.rand(3, 5, 1, dtype=torch.float64) + 0.5
    torch.testing.assert_close(cosine_row_kl(student * lengths, teacher, mask), cosine_row_kl(student, teacher, mask))


@EVERY
@PROPERTY
@given(seed=SEEDS, garbage=st.sampled_from([float("nan"), float("inf"), 1e30]))
def test_pads_are_ignored_and_further_ones_change_nothing(relation: Relation, seed: int, garbage: float) -> None:
    """The authors' cosine form gives NaN on pad rows, all of whose entries are -inf."""
    student, teacher, mask = sides(seed)
    ours = student.clone().requires_grad_()
    expected = relation(ours, teacher, mask)
    (wanted,) = torch.autograd.grad(expected, ours)
    dirty, other = (
        torch.nn.functional.pad(side.masked_fill(~mask[..., None], garbage), (0, 0, 0, 2, 0, 1), value=garbage)
        for side in (student, teacher)
    )
    dirty.requires_grad_()
    value = relation(dirty, other, torch.nn.functional.pad(mask, (0, 2, 0, 1)))
    (gradient,) = torch.autograd.grad(value, dirty)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient[:-1, :5], wanted, rtol=1e-8, atol=1e-10)
    assert not gradient[-1].any()
    assert not gradient[:, 5:].any()


@EVERY
def test_all_masked_is_zero_with_a_zero_gradient(relation: Relation) -> None:
    """A batch without a real token trains nothing."""
    student, teacher, mask = sides(2)
    student.requires_grad_()
    value = relation(student, teacher, torch.zeros_like(mask))
    (gradient,) = torch.autograd.grad(value, student)
    assert value == 0
    assert not gradient.any()


@EVERY
@pytest.mark.parametrize("items", [1, 4])
def test_tokens_without_a_direction_between_them_stay_finite(relation: Relation, items: int) -> None:
    """One token alone, or the same token four times: lengths and means of 0 stand in denominators."""
    student = torch.full((2, items, 4), 0.3).requires_grad_()
    value = relation(student, torch.randn(2, items, 6))
    (gradient,) = torch.autograd.grad(value, student, create_graph=True)
    assert value.isfinite()
    assert gradient.isfinite().all()
    (second,) = torch.autograd.grad(gradient.sum(), student, allow_unused=True, materialize_grads=True)
    assert second.isfinite().all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tokens_that_hardly_differ_have_no_angle_between_them(seed: int) -> None:
    """Their distance in float32 is a rounding error: angles over it are noise with gradients 1000 times as large."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randn(4, 32, generator=generator).repeat(2, 1)
    items = (items + 1e-5 * torch.randn(items.shape, generator=generator)).requires_grad_()
    value = relation_angle(items, torch.randn(8, 32, generator=generator))
    (gradient,) = torch.autograd.grad(value, items)
    assert gradient.norm() < 0.05


@pytest.mark.parametrize("relation", [relative_distance_mse, relation_angle])
def test_a_large_common_part_leaves_float32_enough_digits(relation: Relation) -> None:
    """Transformer states share a large mean, which must be gone before inner products are taken."""
    student, teacher, mask = sides(5)
    shifted = relation((student + 100).float(), (teacher - 100).float(), mask)
    torch.testing.assert_close(shifted, relation(student, teacher, mask).float(), rtol=1e-3, atol=1e-5)


@EVERY
def test_groups_may_have_more_leading_axes(relation: Relation) -> None:
    """The layers of each token of each row are groups of (B, N, L, D)."""
    student, teacher, mask = sides(4, batch=6)
    folded = relation(student.view(2, 3, 5, 4), teacher.view(2, 3, 5, 6), mask.view(2, 3, 5))
    torch.testing.assert_close(folded, relation(student, teacher, mask))


@EVERY
def test_gradients_reach_the_student_alone_twice(relation: Relation) -> None:
    """Second derivatives are what gradient penalties and meta-learning ask for."""
    student, teacher, mask = sides(7, items=4)
    student.requires_grad_()
    teacher.requires_grad_()
    assert torch.autograd.grad(relation(student, teacher, mask), teacher, allow_unused=True) == (None,)
    fixed = teacher.detach()
    assert torch.autograd.gradcheck(lambda items: relation(items, fixed, mask), student)
    assert torch.autograd.gradgradcheck(lambda items: relation(items, fixed, mask), student)


@EVERY
def test_half_precision_is_computed_in_float32(relation: Relation) -> None:
    """Differences of inner products lose what bfloat16 has of digits, under autocast too."""
    student, teacher, mask = sides(3)
    student, teacher = student.float(), teacher.float()
    expected = relation(student, teacher, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(relation(student, teacher, mask), expected)
        assert relation(student.bfloat16(), teacher.bfloat16(), mask).dtype == torch.float32


@EVERY
def test_other_numbers_of_tokens_are_refused(relation: Relation) -> None:
    """Another tokenizer's tokens are other tokens."""
    with pytest.raises(ValueError, match=r"expected rows \[3, 5\]"):
        relation(torch.randn(3, 5, 4), torch.randn(3, 4, 4))
