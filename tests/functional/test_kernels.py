"""Kernel alignment: its definition, its two forms, what it is free of, and batches with too little to align."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hfdistill.functional.kernels import kernel_alignment, linear_cka, linear_cka_debiased

PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
ROWS = st.integers(4, 14)  # of widths 5 and 7: both forms
Similarity = Callable[..., Tensor]
SIMILARITIES: dict[str, Similarity] = {
    "centred": linear_cka,
    "uncentred": lambda student, teacher, mask=None: linear_cka(student, teacher, mask, centre=False),
    "debiased": linear_cka_debiased,
}
EVERY = pytest.mark.parametrize("similarity", SIMILARITIES.values(), ids=SIMILARITIES)


def sides(seed: int, rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A student of width 5 and a teacher of width 7 that have something in common."""
    generator = torch.Generator().manual_seed(seed)
    student, noise = (torch.randn(rows, width, generator=generator, dtype=dtype) for width in (5, 7))
    return student, noise + torch.nn.functional.pad(student, (0, 2))


def rotation(seed: int, width: int) -> Tensor:
    matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(seed + 7), dtype=torch.float64)
    return torch.linalg.qr(matrix).Q


def by_definition(student: Tensor, teacher: Tensor, centre: bool) -> Tensor:
    """CKA of Gram matrices, with the centring matrix written out."""
    rows = len(student)
    centring = torch.eye(rows, dtype=student.dtype) - (1 / rows if centre else 0)
    ours, theirs = (centring @ side @ side.T @ centring for side in (student, teacher))
    return (ours * theirs).sum() / (ours.norm() * theirs.norm())


def unbiased_by_definition(student: Tensor, teacher: Tensor) -> Tensor:
    """Song's estimator, term by term, on kernels without their diagonals."""
    n, ones = len(student), torch.ones(len(student), dtype=student.dtype)
    kernels = [(side @ side.T).fill_diagonal_(0) for side in (student, teacher)]

    def hsic(first: Tensor, second: Tensor) -> Tensor:
        sums = (ones @ first @ ones) * (ones @ second @ ones) / ((n - 1) * (n - 2))
        return (first @ second).trace() + sums - 2 / (n - 2) * (ones @ first @ second @ ones)

    return hsic(*kernels) / (hsic(kernels[0], kernels[0]) * hsic(kernels[1], kernels[1])).sqrt()


@PROPERTY
@given(seed=SEEDS, rows=ROWS, centre=st.booleans())
def test_both_forms_are_the_definition(seed: int, rows: int, centre: bool) -> None:
    """Few rows take the Gram matrices, many the widths: a jump between them would be a jump of the loss."""
    student, teacher = sides(seed, rows)
    torch.testing.assert_close(linear_cka(student, teacher, centre=centre), by_definition(student, teacher, centre))


@pytest.mark.parametrize(("rows", "width"), [(500, 4), (4, 500)])
def test_the_smaller_matrices_are_multiplied(rows: int, width: int) -> None:
    """A batch of 4096 tokens has Gram matrices of 16 million entries, a width of 768 has 30 times fewer."""
    with FlopCounterMode(display=False) as counter:
        linear_cka(torch.randn(rows, width), torch.randn(rows, width))
    assert counter.get_total_flops() <= 3 * 2 * 500 * 4 * 4


@PROPERTY
@given(seed=SEEDS, rows=ROWS)
def test_debiased_is_the_unbiased_estimator(seed: int, rows: int) -> None:
    """It is computed from centred rows in closed form; the definition has the kernels themselves."""
    student, teacher = sides(seed, rows)
    expected = unbiased_by_definition(student, teacher)
    torch.testing.assert_close(linear_cka_debiased(student, teacher), expected, rtol=1e-8, atol=1e-10)


@EVERY
@PROPERTY
@given(seed=SEEDS, rows=ROWS, scale=st.floats(1e-3, 1e3))
def test_rotation_and_scale_change_nothing(similarity: Similarity, seed: int, rows: int, scale: float) -> None:
    """The student may use its width as it likes: that is why nothing needs to be projected."""
    student, teacher = sides(seed, rows)
    turned = -scale * student @ rotation(seed, 5)
    torch.testing.assert_close(similarity(turned, teacher), similarity(student, teacher), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(similarity(turned, student), torch.ones((), dtype=torch.float64))


@PROPERTY
@given(seed=SEEDS, rows=ROWS)
def test_translation_changes_only_the_uncentred_form(seed: int, rows: int) -> None:
    """A common part of all rows says nothing of how they lie; without centring it counts, as in PCKA."""
    student, teacher = sides(seed, rows)
    for similarity in (linear_cka, linear_cka_debiased):
        torch.testing.assert_close(
            similarity(student + 3, teacher - 2), similarity(student, teacher), rtol=1e-7, atol=1e-9
        )
    uncentred, moved = (linear_cka(student + by, teacher + by, centre=False) for by in (0, 3))
    assert (uncentred - moved).abs() > 0.01


@EVERY
@PROPERTY
@given(seed=SEEDS, rows=ROWS)
def test_equality_is_the_end_of_the_way(similarity: Similarity, seed: int, rows: int) -> None:
    """A student that has learnt everything has nothing left to learn."""
    student, _ = sides(seed, rows)
    student.requires_grad_()
    value = similarity(student, student)
    torch.testing.assert_close(value, torch.ones_like(value))
    (gradient,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_few_rows_flatter_the_biased_form_only() -> None:
    """Why `debiased` exists: with fewer rows than D even unrelated rows look alike."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2, 40, 8, 64, generator=generator)
    biased, debiased = (
        torch.stack([similarity(*pair) for pair in zip(*draws, strict=True)]).mean()
        for similarity in (linear_cka, linear_cka_debiased)
    )
    assert biased > 0.8
    assert debiased.abs() < 0.1


@EVERY
@PROPERTY
@given(seed=SEEDS, garbage=st.sampled_from([float("nan"), float("inf"), 1e30]))
def test_masked_rows_never_count(similarity: Similarity, seed: int, garbage: float) -> None:
    """Padding holds whatever a kernel left there; rows lie in sentences, and are one set."""
    student, teacher = sides(seed, 12)
    kept = torch.rand(12, generator=torch.Generator().manual_seed(seed)) < 0.7
    kept[:4] = True
    expected = similarity(student[kept], teacher[kept])
    dirty = student.masked_fill(~kept[:, None], garbage).view(3, 4, 5).requires_grad_()
    value = similarity(dirty, teacher.masked_fill(~kept[:, None], garbage).view(3, 4, 7), kept.view(3, 4))
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-10)
    (gradient,) = torch.autograd.grad(value, dirty)
    assert gradient.isfinite().all()
    assert not gradient[~kept.view(3, 4)].any()


@pytest.mark.parametrize(("options", "fewest"), [({}, 2), ({"centre": False}, 1), ({"debiased": True}, 4)])
def test_too_few_rows_are_nothing_to_learn_from(options: dict[str, bool], fewest: int) -> None:
    """The last batch may hold one row, or none that is valid: that is a loss of 0 with a gradient, not 1 or NaN."""
    student, teacher = (torch.randn(6, 3).requires_grad_() for _ in range(2))
    for valid in range(fewest + 1):
        value = kernel_alignment(student, teacher, torch.arange(6) < valid, **options)
        (gradient,) = torch.autograd.grad(value, student)
        assert gradient.isfinite().all()
        assert value == 0 if valid < fewest else value.abs() <= 2.001
        assert valid >= fewest or not gradient.any()


@pytest.mark.parametrize("debiased", [False, True])
def test_rows_that_are_all_alike_relate_to_nothing(debiased: bool) -> None:
    """A collapsed student differs from its mean by rounding errors, which must not be blown up into a geometry."""
    student = (torch.full((9, 3), 0.1) * 7).requires_grad_()
    value = kernel_alignment(student, torch.randn(9, 4), debiased=debiased)
    (gradient,) = torch.autograd.grad(value, student)
    assert value == 1
    assert not gradient.any()


@EVERY
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_any_scale_fits_float32(similarity: Similarity, scale: float) -> None:
    """Fourth powers of the states leave the range of float32 long before the states do."""
    student, teacher = sides(3, 12, torch.float32)
    torch.testing.assert_close(similarity(scale * student, scale * teacher), similarity(student, teacher))


def test_a_large_common_part_leaves_float32_enough_digits() -> None:
    """Transformer states share a large mean: it must be gone before anything is squared."""
    student, teacher = sides(3, 12)
    for similarity in (linear_cka, linear_cka_debiased):
        shifted = similarity((student + 100).float(), (teacher + 100).float())
        torch.testing.assert_close(shifted, similarity(student, teacher).float(), rtol=1e-3, atol=1e-4)


@EVERY
def test_gradients_reach_the_student_alone_twice(similarity: Similarity) -> None:
    """The scale is divided out as a constant, which must not show in first or second derivatives."""
    student, teacher = sides(5, 6)
    student.requires_grad_()
    teacher.requires_grad_()
    assert torch.autograd.grad(similarity(student, teacher), teacher, allow_unused=True) == (None,)
    fixed = teacher.detach()
    assert torch.autograd.gradcheck(lambda rows: similarity(rows, fixed), student)
    assert torch.autograd.gradgradcheck(lambda rows: similarity(rows, fixed), student)


def test_half_precision_is_computed_in_float32() -> None:
    """Sums over thousands of rows need more digits than bfloat16 has, under autocast too."""
    student, teacher = sides(5, 12, torch.float32)
    expected = linear_cka(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(linear_cka(student, teacher), expected)
        assert linear_cka(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32


def test_other_numbers_of_rows_are_refused() -> None:
    """Row by row is what relates the two sides."""
    with pytest.raises(ValueError, match=r"expected rows \[4\] as in the first input, got .*\[4, 3\] and \[5, 3\]"):
        linear_cka(torch.randn(4, 3), torch.randn(5, 3))
