"""Bounded and skewed divergences, a teacher's top classes, another vocabulary: what their formulas promise."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfdistill.functional.divergences import (
    generalized_jsd,
    skewed_forward_cross_entropy,
    skewed_forward_kl,
    skewed_reverse_kl,
    top_k_kl,
    universal_logit,
)
from hfdistill.functional.response import reverse_kl, soft_target_kl

CLASSES = 5
PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 5))  # B, N
EVEN, UNEVEN = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
Formula = Callable[[Tensor, Tensor, Tensor | None], Tensor]
FORMULAS: dict[str, Formula] = {
    "jsd": lambda s, t, m: generalized_jsd(s, t, 0.3, 2.0, m),
    "jsd, forward end": lambda s, t, m: generalized_jsd(s, t, 0.0, 2.0, m),
    "jsd, reverse end": lambda s, t, m: generalized_jsd(s, t, 1.0, 2.0, m),
    "skewed forward": lambda s, t, m: skewed_forward_kl(s, t, 0.1, 2.0, m),
    "skewed cross-entropy": lambda s, t, m: skewed_forward_cross_entropy(s, t, 0.1, 2.0, m),
    "skewed reverse": lambda s, t, m: skewed_reverse_kl(s, t, 0.1, 2.0, m),
    "top k, tail": lambda s, t, m: top_k_kl(s, t, 2, 2.0, m),
    "top k, tail of all": lambda s, t, m: top_k_kl(s, t, CLASSES, 2.0, m),
    "top k, zero": lambda s, t, m: top_k_kl(s, t, 2, 2.0, m, "zero"),
    "universal": lambda s, t, m: universal_logit(s, t, 2.0, m, m),
    "universal, top": lambda s, t, m: universal_logit(s, t, 2.0, m, m, top=2),
}
EVERY = pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)
BOUNDED = [name for name in FORMULAS if not name.startswith(("jsd, ", "top"))]


def pair(seed: int, *leading: int, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Return a student's logits (..., K), with a gradient, and a teacher's."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *leading, classes, generator=generator, dtype=torch.float64) * 2
    return student.requires_grad_(), teacher


def some(seed: int, *shape: int) -> Tensor:
    """Return a mask of this shape; whole rows may be masked."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.6


def with_gradient(formula: Formula, student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    value = formula(student, teacher, mask)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


@EVERY
@PROPERTY
@given(seed=SEEDS, sizes=SIZES, garbage=st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_masked_rows_never_count(formula: Formula, seed: int, sizes: tuple[int, int], garbage: float) -> None:
    """Padding holds whatever a kernel left there; one NaN in a gradient destroys the model."""
    student, teacher = pair(seed, *sizes)
    mask = some(seed, *sizes)
    clean, clean_gradient = with_gradient(formula, student, teacher, mask)
    assert clean >= 0
    dirty = student.detach().masked_fill(~mask[..., None], garbage).requires_grad_()
    value, gradient = with_gradient(formula, dirty, teacher.masked_fill(~mask[..., None], garbage), mask.float())
    assert torch.equal(value, clean)
    assert torch.equal(gradient, clean_gradient)
    assert not gradient[~mask].any()


@EVERY
def test_nothing_valid_gives_zero_with_a_zero_gradient(formula: Formula) -> None:
    """The last step of an epoch may hold prompts only: it must train nothing rather than break everything."""
    student = torch.full((2, 3, CLASSES), math.nan, requires_grad=True)
    value, gradient = with_gradient(formula, student, torch.zeros(2, 3, CLASSES), torch.zeros(2, 3))
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@EVERY
def test_no_mask_is_a_mask_of_ones(formula: Formula) -> None:
    """Both ways through the code must be the same formula, as must a subset and its mask."""
    student, teacher = pair(1, 2, 3)
    ones = torch.ones(2, 3)
    both = [with_gradient(formula, student, teacher, mask) for mask in (ones, None)]
    torch.testing.assert_close(*both)
    ones[:, 1:] = 0
    torch.testing.assert_close(formula(student, teacher, ones), formula(student[:, :1], teacher[:, :1], None))


@EVERY
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(formula: Formula, half: torch.dtype) -> None:
    """Eight bits of mantissa lose a divergence between close distributions altogether, under autocast too."""
    student, teacher = (side.detach().to(half) for side in pair(0, 2, 4))
    expected = formula(student.float(), teacher.float(), None)
    with torch.autocast("cpu", torch.bfloat16):
        within = formula(student, teacher, None)
    for value in (within, formula(student, teacher, None)):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)  # the type too


@EVERY
def test_gradients_go_to_the_student_alone(formula: Formula) -> None:
    """A teacher that moves towards its student teaches nothing; a wrong derivative shows nowhere else."""
    student, teacher = pair(3, 2, 3)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert torch.autograd.gradcheck(lambda side: formula(side, teacher, mask), student)
    assert torch.autograd.gradgradcheck(lambda side: formula(side, teacher, mask), student)
    value = formula(student, teacher.requires_grad_(), mask)
    assert torch.autograd.grad(value, teacher, allow_unused=True) == (None,)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extreme_logits_stay_finite(formula: Formula, dtype: torch.dtype) -> None:
    """Logits of ±1e4 put a probability of exactly 0 on all but one class: 0 log 0 must be 0, not NaN."""
    rows = torch.tensor([[1e4, -1e4, 0.0, -1e4, 1e4], [-1e4, 1e4, -1e4, 0.0, 0.0]], dtype=dtype)
    student = torch.stack([rows, rows.flip(0)]).requires_grad_()  # (2, 2, K)
    value, gradient = with_gradient(formula, student, torch.stack([rows, rows]), None)
    assert value.isfinite()
    assert gradient.isfinite().all()


@EVERY
def test_classes_shut_out_on_both_sides_are_no_classes(formula: Formula) -> None:
    """A vocabulary padded with -inf is the smaller vocabulary; 0 times infinity is not."""
    student, teacher = pair(5, 2, 3)
    ours, theirs = (torch.nn.functional.pad(side.detach(), (0, 2), value=-math.inf) for side in (student, teacher))
    value, gradient = with_gradient(formula, ours.requires_grad_(), theirs, None)
    expected, expected_gradient = with_gradient(formula, student, teacher, None)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[..., :CLASSES], expected_gradient)
    assert not gradient[..., CLASSES:].any()


@pytest.mark.parametrize("name", BOUNDED)
def test_a_mixture_is_finite_where_one_side_is_shut_out(name: str) -> None:
    """What mixtures are for: the KL is infinite where its second side has no probability."""
    student, teacher = (side.detach() for side in pair(6, 2, 3))
    student[..., 0], teacher[..., 1] = -math.inf, -math.inf
    value, gradient = with_gradient(FORMULAS[name], student.requires_grad_(), teacher, None)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert reverse_kl(student, teacher) == math.inf


@PROPERTY
@given(seed=SEEDS, sizes=SIZES, beta=st.floats(0.01, 0.99))
def test_jsd_is_symmetric_and_bounded(seed: int, sizes: tuple[int, int], beta: float) -> None:
    """Sides swapped and beta turned round are the same divergence; its bound is what a mixture can tell about them."""
    student, teacher = (side.detach() for side in pair(seed, *sizes))
    value = generalized_jsd(student, teacher, beta)
    torch.testing.assert_close(generalized_jsd(teacher, student, 1 - beta), value)
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert -1e-12 < value <= entropy
    apart = torch.tensor([[1e4, 0.0]], dtype=torch.float64), torch.tensor([[0.0, 1e4]], dtype=torch.float64)
    assert generalized_jsd(*apart, beta).item() == pytest.approx(entropy)


def test_jsd_by_hand() -> None:
    """p_s = (1/2, 1/2), p_t = (3/4, 1/4), mixture (9/16, 7/16) for beta 1/4: swapped shares give another number."""
    forward = 0.75 * math.log(0.75 * 16 / 9) + 0.25 * math.log(0.25 * 16 / 7)
    reverse = 0.5 * math.log(0.5 * 16 / 9) + 0.5 * math.log(0.5 * 16 / 7)
    assert generalized_jsd(EVEN, UNEVEN, 0.25).item() == pytest.approx(0.25 * forward + 0.75 * reverse, rel=1e-12)
    assert generalized_jsd(2 * EVEN, 2 * UNEVEN, 0.25, temperature=2.0) == generalized_jsd(EVEN, UNEVEN, 0.25)


@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_jsd_goes_from_the_forward_to_the_reverse_kl(seed: int, sizes: tuple[int, int]) -> None:
    """At the ends it is the KL itself; next to them only a share of it, so the scale jumps there, as documented."""
    student, teacher = (side.detach() for side in pair(seed, *sizes))
    forward, reverse = soft_target_kl(student, teacher), reverse_kl(student, teacher)
    torch.testing.assert_close(generalized_jsd(student, teacher, 0.0), forward)
    torch.testing.assert_close(generalized_jsd(student, teacher, 1.0), reverse)
    torch.testing.assert_close(generalized_jsd(student, teacher, 1e-6) / 1e-6, forward, rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(generalized_jsd(student, teacher, 1 - 1e-6) / 1e-6, reverse, rtol=1e-2, atol=1e-6)


@PROPERTY
@given(seed=SEEDS, sizes=SIZES, alpha=st.floats(0.01, 0.99))
def test_skewed_divergences_in_probabilities(seed: int, sizes: tuple[int, int], alpha: float) -> None:
    """Which side is mixed into which is easily mistaken: here it is written out, without logarithms of softmax."""
    student, teacher = (side.detach() for side in pair(seed, *sizes))
    ours, theirs = student.softmax(-1), teacher.softmax(-1)
    mixed_ours, mixed_theirs = alpha * theirs + (1 - alpha) * ours, alpha * ours + (1 - alpha) * theirs
    forward = (theirs * (theirs / mixed_ours).log()).sum(-1).mean()
    torch.testing.assert_close(skewed_forward_kl(student, teacher, alpha), forward)
    cross = -(theirs * mixed_ours.log()).sum(-1).mean()
    torch.testing.assert_close(skewed_forward_cross_entropy(student, teacher, alpha), cross)
    reverse = (ours * (ours / mixed_theirs).log()).sum(-1).mean()
    torch.testing.assert_close(skewed_reverse_kl(student, teacher, alpha), reverse)
    assert max(forward, reverse) <= -math.log(alpha)


@pytest.mark.parametrize("skewed", [skewed_forward_kl, skewed_reverse_kl])
def test_the_ends_of_a_skewed_divergence(skewed: Callable[..., Tensor]) -> None:
    """At 0 it is the plain KL, infinities and all, at 1 nothing; sides with nothing in common reach the bound."""
    student, teacher = pair(2, 3)
    plain = soft_target_kl if skewed is skewed_forward_kl else reverse_kl
    torch.testing.assert_close(skewed(student, teacher, 0.0), plain(student, teacher))
    value, gradient = with_gradient(lambda s, t, m: skewed(s, t, 1.0, mask=m), student, teacher, None)
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)
    apart = torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]])
    assert skewed(*apart, 0.0) == math.inf
    assert skewed(*apart, 0.1).item() == pytest.approx(math.log(10.0))


def test_the_cross_entropy_form_has_the_same_gradient() -> None:
    """It adds a constant, the teacher's entropy; else it would be another method."""
    student, teacher = pair(8, 2, 3)
    plain, cross = (FORMULAS[f"skewed {form}"](student, teacher, None) for form in ("forward", "cross-entropy"))
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (cross, plain)))
    assert skewed_forward_cross_entropy(teacher, teacher) > 0


@pytest.mark.parametrize("formula", ["jsd", "skewed forward", "skewed reverse", "top k, tail", "universal"])
def test_nothing_to_learn_from_oneself(formula: str) -> None:
    """A perfect student must be left alone."""
    student, teacher = pair(9, 2, 3)
    value, gradient = with_gradient(FORMULAS[formula], student, student.detach().clone(), None)
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)
    assert FORMULAS[formula](student, teacher, None) > 1e-3


@PROPERTY
@given(seed=SEEDS, sizes=SIZES, k=st.integers(1, CLASSES - 1))
def test_top_classes_against_the_whole(seed: int, sizes: tuple[int, int], k: int) -> None:
    """Classes taken together cannot tell more than all of them; with all of them both modes are the KL."""
    student, teacher = (side.detach() for side in pair(seed, *sizes))
    whole = soft_target_kl(student, teacher)
    chosen = teacher.topk(k).indices
    ours, theirs = (side.softmax(-1).gather(-1, chosen) for side in (student, teacher))
    rest_ours, rest_theirs = 1 - ours.sum(-1), 1 - theirs.sum(-1)
    tail = (theirs * (theirs / ours).log()).sum(-1) + rest_theirs * (rest_theirs / rest_ours).log()
    torch.testing.assert_close(top_k_kl(student, teacher, k), tail.mean())
    assert tail.mean() <= whole + 1e-12
    target = theirs / theirs.sum(-1, keepdim=True)
    zero = (target * (target / ours).log()).sum(-1)
    torch.testing.assert_close(top_k_kl(student, teacher, k, missing="zero"), zero.mean())
    least = -(1 - rest_theirs).log().mean()
    torch.testing.assert_close(top_k_kl(teacher, teacher, k, missing="zero"), least)
    for missing in ("tail", "zero"):
        torch.testing.assert_close(top_k_kl(student, teacher, CLASSES + 3, missing=missing), whole)


@pytest.mark.parametrize("missing", ["tail", "zero"])
def test_a_teacher_stored_by_its_top_classes_is_enough(missing: str) -> None:
    """What is not stored is -inf: its tail is empty, so both modes are the KL to the teacher that was stored."""
    student, teacher = pair(4, 2, 3)
    stored = teacher.masked_fill(teacher < teacher.topk(2).values[..., -1:], -math.inf)
    value, gradient = with_gradient(lambda s, t, m: top_k_kl(s, t, 3, 1.0, m, missing), student, stored, None)
    torch.testing.assert_close(value, soft_target_kl(student, stored))
    assert gradient.isfinite().all()
    shut_out = student.detach().masked_fill(teacher < teacher.topk(2).values[..., -1:], -math.inf)
    assert top_k_kl(shut_out, teacher, 2) == math.inf  # as the KL is, where the student gives the others nothing


def looped(student: Tensor, teacher: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """ULD as the paper says it: sample by sample, position by position."""
    samples = []
    width = max(student.shape[-1], teacher.shape[-1])
    for i in range(len(student)):
        first, second = student[i][ours[i]], teacher[i][theirs[i]]
        distances = []
        for one, other in zip(first, second, strict=False):
            rows = [torch.zeros(width, dtype=torch.float64) for _ in range(2)]
            for row, logits in zip(rows, (one, other), strict=True):
                row[: len(logits)] = logits.softmax(-1).sort(descending=True).values
            distances.append((rows[0] - rows[1]).abs().sum())
        samples += [torch.stack(distances).mean()] if distances else []
    return torch.stack(samples).mean() if samples else student.sum() * 0


@PROPERTY
@given(seed=SEEDS, sizes=SIZES, more=st.integers(0, 2), classes=st.sampled_from([3, CLASSES, 8]))
def test_universal_logits_position_by_position(seed: int, sizes: tuple[int, int], more: int, classes: int) -> None:
    """Aligned without a loop: i-th valid with i-th valid, the rest dropped, samples without a pair left out."""
    student, _ = pair(seed, *sizes)
    teacher, _ = pair(seed + 1, sizes[0], sizes[1] + more, classes=classes)
    ours, theirs = some(seed, *sizes), some(seed + 2, sizes[0], sizes[1] + more)
    value = universal_logit(student, teacher, student_mask=ours, teacher_mask=theirs)
    expected = looped(student, teacher.detach(), ours, theirs)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(side, student)[0] for side in (value, expected)))
    assert value <= 2


@PROPERTY
@given(seed=SEEDS, sizes=SIZES, top=st.integers(1, 9))
def test_universal_logits_know_no_tokens(seed: int, sizes: tuple[int, int], top: int) -> None:
    """Another order of either vocabulary is the same; fewer probabilities tell less, all of them all."""
    student, _ = pair(seed, *sizes)
    teacher, _ = pair(seed + 1, *sizes, classes=8)
    value = universal_logit(student, teacher)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(side.shape[-1], generator=generator) for side in (student, teacher)]
    torch.testing.assert_close(universal_logit(student[..., orders[0]], teacher[..., orders[1]]), value)
    torch.testing.assert_close(universal_logit(student, student[..., orders[0]]), 0 * value)
    fewer = universal_logit(student, teacher, top=top)
    assert fewer <= value + 1e-12
    if top >= 8:
        torch.testing.assert_close(fewer, value)


def test_universal_logits_by_hand() -> None:
    """(1/2, 1/2) and (1/4, 3/4, 0), whatever stands where: 1/4 + 1/4; the teacher may have its own temperature."""
    teacher = torch.cat([UNEVEN.flip(-1), torch.full((1, 1), -math.inf)], -1)[None]
    assert universal_logit(EVEN[None], teacher).item() == pytest.approx(0.5)
    assert universal_logit(EVEN[None], 3 * teacher, teacher_temperature=3.0).item() == pytest.approx(0.5)
    tail = universal_logit(EVEN[None], teacher, top=1)  # 1/2 and the rest against 3/4 and the rest
    assert tail.item() == pytest.approx(0.5)
    student, teacher = pair(0, 2, 3)
    each, mask = torch.arange(1, 7).view(2, 3, 1), torch.tensor([[1, 0, 1], [0, 1, 1]])
    value = universal_logit(each * student, each * teacher, each, mask, mask)
    torch.testing.assert_close(value, universal_logit(student, teacher, 1.0, mask, mask))


def test_what_is_refused() -> None:
    """A share outside 0 to 1, no classes at all or a misspelt word would train on something else in silence."""
    student, teacher = pair(0, 2, 3)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"expected beta from 0 to 1.*share of a mixture"):
            generalized_jsd(student, teacher, share)
        with pytest.raises(ValueError, match=r"expected alpha from 0 to 1.*share of a mixture"):
            skewed_reverse_kl(student, teacher, share)
    with pytest.raises(ValueError, match=r"expected k >= 1, got 0"):
        top_k_kl(student, teacher, 0)
    with pytest.raises(ValueError, match=r"missing='tail' or 'zero', got 'uniform'"):
        top_k_kl(student, teacher, 2, missing="uniform")
    for option in ({"top": 0}, {"teacher_temperature": 0.0}):
        with pytest.raises(ValueError, match=r"expected (top >= 1|temperatures above 0), got"):
            universal_logit(student, teacher, **option)
    for wrong in (student[:1], student[:, 0]):
        with pytest.raises(ValueError, match=r"expected logits \(B, N, V\) of one batch.*logits\[:, None\]"):
            universal_logit(wrong, teacher)
    with pytest.raises(ValueError, match=r"expected rows \[2, 2\] as in the mask"):
        universal_logit(student, teacher, student_mask=torch.ones(2, 2))
