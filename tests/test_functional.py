"""What every formula with a token mask must hold to: equality, masks, precision, and where gradients go."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfdistill import functional as F

HEADS, WIDTH = 2, 4
GARBAGE = (float("nan"), float("inf"), -float("inf"), 1e30)
PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.tuples(st.integers(1, 4), st.integers(2, 5))  # B, N


@dataclass(frozen=True)
class Formula:
    """A function with a token mask, what its inputs look like, and what its formula promises at equality."""

    name: str
    call: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    attention: bool = False  # (B, H, N, N) instead of (B, N, D)
    probabilities: bool = False
    zero_at_equality: bool = True
    smooth: bool = True  # a gradient of 0 at equality

    def inputs(self, seed: int, batch: int, tokens: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shape = (2, batch, HEADS, tokens, tokens) if self.attention else (2, batch, tokens, WIDTH)
        both = torch.randn(shape, generator=generator, dtype=torch.float64)
        student, teacher = (both.softmax(-1) if self.probabilities else both).to(dtype)
        return student.requires_grad_(), teacher

    def spread(self, mask: Tensor) -> Tensor:
        """Return which entries of the inputs a token mask leaves valid."""
        return mask[:, None, :, None] & mask[:, None, None, :] if self.attention else mask[..., None]


FORMULAS = (
    Formula("soft_target_kl", lambda s, t, m: F.soft_target_kl(s, t, 2.0, m)),
    Formula("soft_target_kl elementmean", lambda s, t, m: F.soft_target_kl(s, t, 2.0, m, "elementmean", False)),
    Formula(
        "soft_target_cross_entropy",
        lambda s, t, m: F.soft_target_cross_entropy(s, t, 2.0, m, "elementmean", True),
        zero_at_equality=False,
    ),
    Formula("reverse_kl", lambda s, t, m: F.reverse_kl(s, t, 2.0, m)),
    Formula("total_variation", lambda s, t, m: F.total_variation(s, t, 2.0, m)),
    Formula("logit_mse", lambda s, t, m: F.logit_mse(s, t, 2.0, m)),
    Formula("hidden_mse", F.hidden_mse),
    Formula("hidden_mse paper", lambda s, t, m: F.hidden_mse(s, t, m, "paper")),
    Formula("hidden_cosine", F.hidden_cosine),
    Formula("attention_score_mse", F.attention_score_mse, attention=True),
    Formula(
        "attention_probability_kl", F.attention_probability_kl, attention=True, probabilities=True, smooth=False
    ),  # its gradient -t/s is 0 only along the simplex
    Formula("attention_probability_mse", F.attention_probability_mse, attention=True, probabilities=True),
    Formula("relation_kl", lambda s, t, m: F.relation_kl(s, s.flip(-1), t, t.flip(-1), HEADS, m)),
    Formula("flow_of_solution", lambda s, t, m: F.flow_of_solution(s, s[..., :2], t, t[..., :2], m)),
)
EVERY = pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.name)


def token_mask(seed: int, batch: int, tokens: int) -> Tensor:
    """Return a mask with at least one valid token somewhere; whole samples may be masked."""
    mask = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(seed + 1)) < 0.6
    mask[0, 0] = True
    return mask


def value_and_gradient(
    formula: Formula, student: Tensor, teacher: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    loss = formula.call(student, teacher, mask)
    (gradient,) = torch.autograd.grad(loss, student)
    return loss.detach(), gradient


@EVERY
@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_equality(formula: Formula, seed: int, sizes: tuple[int, int]) -> None:
    """A student that has learnt everything must have nothing left to learn, and never a negative loss before."""
    student, teacher = formula.inputs(seed, *sizes)
    mask = token_mask(seed, *sizes)
    if formula.zero_at_equality:
        assert formula.call(student, teacher, None) > 0
        loss, gradient = value_and_gradient(formula, student, student, mask)
        torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-12, rtol=0)
    else:
        _, gradient = value_and_gradient(formula, student, student, mask)
    if formula.smooth:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


@EVERY
@PROPERTY
@given(seed=SEEDS, sizes=SIZES, garbage=st.sampled_from(GARBAGE))
def test_masked_entries_never_count(formula: Formula, seed: int, sizes: tuple[int, int], garbage: float) -> None:
    """Padding holds whatever a kernel left there; one NaN in a gradient destroys the model."""
    student, teacher = formula.inputs(seed, *sizes)
    mask = token_mask(seed, *sizes)
    clean_loss, clean_gradient = value_and_gradient(formula, student, teacher, mask)
    shut = ~formula.spread(mask)
    dirty = student.detach().masked_fill(shut, garbage).requires_grad_()
    loss, gradient = value_and_gradient(formula, dirty, teacher.masked_fill(shut, garbage), mask.float())
    assert torch.equal(loss, clean_loss)
    assert torch.equal(gradient, clean_gradient)
    assert not gradient[shut.expand_as(gradient)].any()


@EVERY
@PROPERTY
@given(seed=SEEDS, sizes=SIZES, extra=st.integers(1, 3))
def test_longer_padding_changes_nothing(formula: Formula, seed: int, sizes: tuple[int, int], extra: int) -> None:
    """The loss of a sample must not depend on how long its neighbours in the batch are, nor on empty samples."""
    student, teacher = formula.inputs(seed, *sizes)
    mask = token_mask(seed, *sizes)
    last = (0, extra, 0, extra, 0, 0, 0, 1) if formula.attention else (0, 0, 0, extra, 0, 1)
    longer = [torch.nn.functional.pad(side.detach(), last, value=float("nan")) for side in (student, teacher)]
    longer_mask = torch.nn.functional.pad(mask, (0, extra, 0, 1))
    loss = formula.call(student, teacher, mask)
    torch.testing.assert_close(formula.call(longer[0], longer[1], longer_mask), loss, rtol=1e-12, atol=1e-14)


@EVERY
@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_mask_of_ones_is_no_mask(formula: Formula, seed: int, sizes: tuple[int, int]) -> None:
    """Both ways through the code must be the same formula."""
    student, teacher = formula.inputs(seed, *sizes)
    loss, gradient = value_and_gradient(formula, student, teacher, None)
    masked_loss, masked_gradient = value_and_gradient(formula, student, teacher, torch.ones(sizes))
    torch.testing.assert_close((masked_loss, masked_gradient), (loss, gradient), rtol=1e-12, atol=1e-14)


@EVERY
@pytest.mark.parametrize("content", [0.5, float("nan"), float("inf")])
def test_all_masked_batch(formula: Formula, content: float) -> None:
    """The last step of an epoch may hold prompts only: it must train nothing rather than break everything."""
    student, teacher = formula.inputs(0, 2, 3)
    student = torch.full_like(student, content).requires_grad_()
    loss, gradient = value_and_gradient(formula, student, teacher, torch.zeros(2, 3))
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@EVERY
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(formula: Formula, half: torch.dtype) -> None:
    """Eight bits of mantissa lose a divergence between close distributions altogether, under autocast too."""
    student, teacher = formula.inputs(0, 2, 4, half)
    mask = token_mask(0, 2, 4)
    expected = formula.call(student.float(), teacher.float(), mask)
    with torch.autocast("cpu", torch.bfloat16):
        within, of_float = formula.call(student, teacher, mask), formula.call(student.float(), teacher.float(), mask)
    assert expected.dtype == torch.float32
    for loss in (formula.call(student, teacher, mask), within):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert torch.equal(of_float, expected)


@EVERY
def test_no_gradient_to_the_teacher(formula: Formula) -> None:
    """A teacher that moves towards its student teaches nothing."""
    student, teacher = formula.inputs(0, 2, 3)
    teacher.requires_grad_()
    loss = formula.call(student, teacher, None)
    to_student, to_teacher = torch.autograd.grad(loss, [student, teacher], allow_unused=True)
    assert to_teacher is None
    assert to_student.any()


@EVERY
def test_gradient_by_finite_differences(formula: Formula) -> None:
    """What is detached or filled by mistake shows as a wrong derivative, and nowhere else."""
    student, teacher = formula.inputs(3, 2, 3)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert torch.autograd.gradcheck(lambda side: formula.call(side, teacher, mask), student)
