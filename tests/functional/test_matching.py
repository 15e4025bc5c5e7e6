"""Attention over layers and channels, and features of auxiliary classifiers: definitions, masks, what is free."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfdistill.functional.matching import (
    attended_matching,
    attentive_matching,
    energy,
    layer_attention,
    task_oriented,
)
from hfdistill.functional.reductions import unit

PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
GARBAGE = (torch.nan, torch.inf, 1e30)
TEACHERS, STUDENTS, WIDTH = 2, 3, 4


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attended(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """(B, N, D) as maps: the first columns of each side are its layers."""
    maps, targets = student[..., :STUDENTS].permute(2, 0, 1), teacher[..., :TEACHERS].permute(2, 0, 1)
    attention = drawn(7, 1, TEACHERS, STUDENTS).softmax(-1).expand(len(student), -1, -1)
    return attended_matching(maps[None], targets, attention, mask)


def attentive(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    return attentive_matching(student, teacher, drawn(7, 1, WIDTH).softmax(-1).expand(len(student), -1), mask)


def oriented(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """All tokens as rows of the batch, two depths of them, with a map that is orthogonal."""
    ours, theirs = (side.reshape(-1, WIDTH)[None].expand(2, -1, -1) for side in (student, teacher))
    eye = torch.eye(WIDTH, dtype=student.dtype).expand(2, -1, -1)
    return task_oriented(ours, theirs, eye, mask=None if mask is None else mask.flatten())


FORMULAS: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "attended": attended,
    "attentive": attentive,
    "oriented": oriented,
}
EVERY = pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)


def token_mask(seed: int, batch: int, tokens: int) -> Tensor:
    mask = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(seed + 1)) < 0.6
    mask[0, 0] = True
    return mask


@EVERY
@PROPERTY
@given(seed=SEEDS, batch=st.integers(1, 3), tokens=st.integers(2, 4), garbage=st.sampled_from(GARBAGE))
def test_masked_tokens_never_count(
    formula: Callable[..., Tensor], seed: int, batch: int, tokens: int, garbage: float
) -> None:
    """Neither what padding holds nor how much of it there is, empty rows included; and no gradient to it."""
    student, teacher = drawn(seed, batch, tokens, WIDTH), drawn(seed + 1, batch, tokens, WIDTH)
    mask = token_mask(seed, batch, tokens)
    clean = student.clone().requires_grad_()
    expected = formula(clean, teacher, mask)
    (wanted,) = torch.autograd.grad(expected, clean)
    shut = ~mask[..., None]
    more = (0, 0, 0, 2, 0, 1)
    dirty, target = (
        torch.nn.functional.pad(side.masked_fill(shut, garbage), more, value=garbage) for side in (student, teacher)
    )
    dirty.requires_grad_()
    value = formula(dirty, target, torch.nn.functional.pad(mask, (0, 2, 0, 1)).float())
    (gradient,) = torch.autograd.grad(value, dirty)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[:batch, :tokens], wanted)
    assert not gradient[batch:].any()
    assert not gradient[:batch, :tokens][~mask].any()


@EVERY
def test_an_all_masked_batch_teaches_nothing(formula: Callable[..., Tensor]) -> None:
    """It must train nothing rather than break everything."""
    student = torch.full((2, 3, WIDTH), torch.nan, dtype=torch.float64, requires_grad=True)
    value = formula(student, student.detach(), torch.zeros(2, 3))
    (gradient,) = torch.autograd.grad(value, student)
    assert value == 0
    assert not gradient.any()


@EVERY
def test_gradients_of_both_orders(formula: Callable[..., Tensor]) -> None:
    """What is detached by mistake shows as a wrong derivative; the second order is what gradient penalties take."""
    student, teacher = drawn(0, 2, 3, WIDTH).requires_grad_(), drawn(1, 2, 3, WIDTH)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert torch.autograd.gradcheck(lambda side: formula(side, teacher, mask), student)
    assert torch.autograd.gradgradcheck(lambda side: formula(side, teacher, mask), student)
    watched = teacher.clone().requires_grad_()
    formula(student, watched, None).backward()
    assert watched.grad is None


@EVERY
def test_half_precision_is_computed_in_float32(formula: Callable[..., Tensor]) -> None:
    """Under autocast too."""
    student, teacher = drawn(0, 2, 3, WIDTH).float(), drawn(1, 2, 3, WIDTH).float()
    expected = formula(student, teacher, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(formula(student, teacher, None), expected, check_dtype=False)
    assert formula(student.bfloat16(), teacher.bfloat16(), None).dtype in (torch.float32, torch.float64)


@PROPERTY
@given(seed=SEEDS)
def test_attention_shares_out_each_teacher_layer(seed: int) -> None:
    """By a softmax of <key, query> + <p_t, p_s> over the student's layers, written out entry by entry."""
    query, key = drawn(seed, 2, TEACHERS, WIDTH), drawn(seed + 1, 2, STUDENTS, TEACHERS, WIDTH)
    theirs, ours = drawn(seed + 2, TEACHERS, WIDTH), drawn(seed + 3, STUDENTS, WIDTH)
    attention = layer_attention(query, key, theirs, ours)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, TEACHERS, dtype=torch.float64))
    for b in range(2):
        for t in range(TEACHERS):
            scores = torch.stack([key[b, s, t] @ query[b, t] + theirs[t] @ ours[s] for s in range(STUDENTS)])
            torch.testing.assert_close(attention[b, t], (scores / math.sqrt(WIDTH)).softmax(0))


def test_one_student_layer_is_all_there_is_to_look_at() -> None:
    """Then the loss is that of attention transfer, layer by layer: the mean square of the maps' difference."""
    attention = layer_attention(drawn(0, 2, 2, 4), drawn(1, 2, 1, 2, 4), drawn(2, 2, 4), drawn(3, 1, 4))
    assert torch.equal(attention, torch.ones(2, 2, 1, dtype=torch.float64))
    student, teacher = unit(drawn(4, 1, 2, 5)), unit(drawn(5, 2, 2, 5))
    value = attended_matching(student[None], teacher, attention)
    torch.testing.assert_close(value, (student - teacher).square().mean((1, 2)).sum())


def test_attention_learns_to_look_at_what_is_near() -> None:
    """Nothing stops it from lowering the loss so; its gradient is the gap of each pair."""
    student, teacher = drawn(0, 1, STUDENTS, 2, 5), drawn(1, TEACHERS, 2, 5)
    attention = torch.full((2, TEACHERS, STUDENTS), 1 / 3, dtype=torch.float64, requires_grad=True)
    attended_matching(student, teacher, attention).backward()
    gaps = (student - teacher[:, None]).square().mean(-1)  # (T, S, B)
    torch.testing.assert_close(attention.grad, gaps.permute(2, 0, 1) / 2)


def test_maps_may_differ_between_teacher_layers() -> None:
    """A student map for each teacher layer, as where their grids differ, or one for all."""
    student, teacher = drawn(0, 1, STUDENTS, 2, 5), drawn(1, TEACHERS, 2, 5)
    attention = drawn(2, 2, TEACHERS, STUDENTS).softmax(-1)
    one = attended_matching(student, teacher, attention)
    torch.testing.assert_close(attended_matching(student.expand(TEACHERS, -1, -1, -1), teacher, attention), one)


def test_energy_is_the_mean_square_of_each_token() -> None:
    """Padding has none, whatever it holds."""
    states = torch.tensor([[[3.0, 4.0], [torch.nan, 1.0]]])
    assert energy(states, torch.tensor([[1, 0]])).tolist() == [[12.5, 0.0]]


@PROPERTY
@given(seed=SEEDS, scale=st.floats(0.1, 10))
def test_scales_of_channels_do_not_matter(seed: int, scale: float) -> None:
    """Each is a unit vector over the tokens; the epsilon of 1e-6 is all that sees its length."""
    student, teacher = drawn(seed, 2, 5, WIDTH), drawn(seed + 1, 2, 5, WIDTH)
    scales = torch.tensor([scale, 1.0, 1 / scale, 3.0], dtype=torch.float64)
    value = attentive(student * scales, teacher * scales.flip(0), None)
    torch.testing.assert_close(value, attentive(student, teacher, None), rtol=1e-4, atol=1e-6)
    assert attentive(student * scales, student, None) < 1e-9


def test_uniform_attention_is_the_mean_over_channels() -> None:
    """Of the squared difference of unit vectors; weights that sum to 1 only move it between channels."""
    student, teacher = drawn(0, 2, 5, WIDTH), drawn(1, 2, 5, WIDTH)
    uniform = torch.full((2, WIDTH), 1 / WIDTH, dtype=torch.float64)
    ours, theirs = (torch.nn.functional.normalize(side, dim=1) for side in (student, teacher))
    value = attentive_matching(student, teacher, uniform, epsilon=0.0)
    torch.testing.assert_close(value, (ours - theirs).square().mean())


def test_an_empty_channel_has_a_bounded_gradient() -> None:
    """A dead channel has no direction; a step of 1 / 1e-6 would throw the model away."""
    student = drawn(0, 2, 5, WIDTH)
    student[..., 1] = 0
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(attentive(student, drawn(1, 2, 5, WIDTH), None), student)
    assert gradient.abs().max() < 1


@EVERY
@PROPERTY
@given(seed=SEEDS)
def test_equality_is_the_end_of_the_way(formula: Callable[..., Tensor], seed: int) -> None:
    """Where all maps agree attention has nothing to choose, and an orthogonal map nothing to strain."""
    student = drawn(seed, 2, 3, 1 if formula is attended else WIDTH).expand(-1, -1, WIDTH).clone().requires_grad_()
    value = formula(student, student.detach(), None)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.abs() < 1e-12
    assert gradient.abs().max() < 1e-9


@PROPERTY
@given(seed=SEEDS)
def test_norms_span_the_batch_and_are_not_squared(seed: int) -> None:
    """As the authors' code has them: the same rows twice weigh √2, not 2 and not 1."""
    student, teacher, maps = drawn(seed, 2, 3, 4), drawn(seed + 1, 2, 3, 4), drawn(seed + 2, 2, 4, 5)
    once = task_oriented(student, teacher, maps, beta=0)
    twice = task_oriented(torch.cat([student] * 2, 1), torch.cat([teacher] * 2, 1), maps, beta=0)
    torch.testing.assert_close(twice, math.sqrt(2) * once)
    torch.testing.assert_close(once, 0.05 * ((student[0] - teacher[0]).norm() + (student[1] - teacher[1]).norm()))


@PROPERTY
@given(seed=SEEDS, student_width=st.integers(1, 6), teacher_width=st.integers(1, 6))
def test_only_square_maps_can_be_without_strain(seed: int, student_width: int, teacher_width: int) -> None:
    """Orthonormal rows or columns reach the bound √|D_t - D_s|, which is 0 for equal widths only."""
    features = torch.zeros(1, 1, teacher_width, dtype=torch.float64)
    left, _, right = torch.linalg.svd(drawn(seed, teacher_width, student_width), full_matrices=False)
    maps = (left @ right)[None]
    strain = task_oriented(features, features, maps, beta=1.0)
    assert strain.item() == pytest.approx(math.sqrt(abs(teacher_width - student_width)), abs=1e-9)


def test_a_map_is_not_pulled_at_without_a_row() -> None:
    """A batch without one label must not train anything, the maps included."""
    maps = drawn(0, 1, 4, 5).requires_grad_()
    value = task_oriented(drawn(1, 1, 3, 4), drawn(2, 1, 3, 4), maps, mask=torch.zeros(3))
    (gradient,) = torch.autograd.grad(value, maps)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layer_attention(drawn(0, 2, 3, 4), drawn(0, 2, 5, 2, 4), drawn(0, 3, 4), drawn(0, 5, 4)), "asks"),
        (lambda: attended_matching(drawn(0, 3, 2, 4), drawn(0, 3, 2, 4), drawn(0, 2, 3, 3)), "every teacher layer"),
        (lambda: attended_matching(drawn(0, 1, 3, 2, 4), drawn(0, 3, 2, 5), drawn(0, 2, 3, 3)), "Pool the larger"),
        (lambda: attentive_matching(drawn(0, 2, 3, 4), drawn(0, 2, 3, 4), drawn(0, 4)), "one weight for each"),
        (lambda: task_oriented(drawn(0, 2, 3, 4), drawn(0, 2, 3, 4), drawn(0, 4, 4)), "a map of its own"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call: Callable[[], Tensor], message: str) -> None:
    """Broadcasting would compare what does not belong together."""
    with pytest.raises(ValueError, match=message):
        call()
