"""Adjusted targets and dynamic temperatures: what is swapped, shared out and traded among rows; values by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from hfdistill.functional.response import soft_target_kl
from hfdistill.functional.supervision import (
    cwsm_temperature,
    flsw_temperature,
    label_smoothing,
    probability_shift,
)

PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.tuples(st.integers(2, 6), st.integers(2, 6))  # B, K


def drawn(seed: int, rows: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """A student's logits, with a gradient, a teacher's, and labels."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher, torch.randint(classes, (rows,), generator=generator)


@PROPERTY
@given(seed=SEEDS, sizes=SIZES, temperature=st.floats(0.5, 10))
def test_a_shift_permutes_each_row_and_puts_the_label_first(
    seed: int, sizes: tuple[int, int], temperature: float
) -> None:
    """No probability is lost, right rows stay, and swapping logits is swapping probabilities at any temperature."""
    _, teacher, labels = drawn(seed, *sizes)
    shifted = probability_shift(teacher, labels)
    assert torch.equal(shifted.sort(-1).values, teacher.sort(-1).values)
    assert torch.equal(shifted.argmax(-1), labels)
    right = teacher.argmax(-1) == labels
    assert torch.equal(shifted[right], teacher[right])
    rows, answers = torch.arange(len(teacher)), teacher.argmax(-1)
    swapped = (teacher / temperature).softmax(-1)
    swapped[rows, labels], swapped[rows, answers] = swapped[rows, answers], swapped[rows, labels]
    torch.testing.assert_close((shifted / temperature).softmax(-1), swapped)


@pytest.mark.parametrize("temperature", [1.0, 5.0, torch.tensor([[1.0], [2.0], [3.0]])])
def test_smoothing_by_hand(temperature: float | Tensor) -> None:
    """Three classes, ε = 0.2, the teacher wrong on the first row, right on the second, unlabelled on the third."""
    teacher = torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0], [1.0, 3.0, 0.0]])
    smoothed = label_smoothing(teacher, torch.tensor([1, 0, -100]), temperature, 0.2)
    torch.testing.assert_close((smoothed / temperature).softmax(-1)[0], torch.tensor([0.1, 0.8, 0.1]))
    assert torch.equal(smoothed[1:], teacher[1:])
    assert torch.equal(probability_shift(teacher, torch.tensor([1, 0, -100]))[1:], teacher[1:])


def test_smoothing_gives_no_share_to_a_class_that_is_shut_out() -> None:
    """A padded vocabulary stands at -inf on both sides: a share there would make the loss infinite."""
    smoothed = label_smoothing(torch.tensor([[3.0, 1.0, 0.0, -torch.inf]]), torch.tensor([1]), 1.0, 0.2)
    torch.testing.assert_close(smoothed.softmax(-1), torch.tensor([[0.1, 0.8, 0.1, 0.0]]))


def test_no_smoothing_is_the_label_alone() -> None:
    """ε = 0 leaves -inf in the target, and a loss that is the cross-entropy there."""
    student, teacher, _ = drawn(0, 3, 4)
    wrong = (teacher.argmax(-1) + 1) % 4
    target = label_smoothing(teacher, wrong, epsilon=0.0)
    torch.testing.assert_close(soft_target_kl(student, target), cross_entropy(student, wrong))


@pytest.mark.parametrize("epsilon", [-0.1, 1.0, 2.0])
def test_a_share_that_is_none_is_refused(epsilon: float) -> None:
    """Its logarithm would be NaN."""
    with pytest.raises(ValueError, match=rf"epsilon in \[0, 1\), got {epsilon}"):
        label_smoothing(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), epsilon=epsilon)


# ---- dynamic temperatures ----


@PROPERTY
@given(seed=SEEDS, sizes=SIZES, beta=st.floats(0, 40), gamma=st.floats(0.5, 3))
def test_the_mean_temperature_is_the_given_one(seed: int, sizes: tuple[int, int], beta: float, gamma: float) -> None:
    """Rows trade temperature among each other; masked ones take no part and a mask of ones changes nothing."""
    student, teacher, _ = drawn(seed, *sizes)
    mask = torch.arange(sizes[0]) > 0
    for rows in (flsw_temperature(student, teacher, 4.0, beta, gamma), cwsm_temperature(student, 4.0, beta)):
        assert rows.shape == (sizes[0],)
        assert not rows.requires_grad
        assert rows.mean().item() == pytest.approx(4.0)
    dirty = student.detach().masked_fill(~mask[:, None], torch.nan)
    flsw = flsw_temperature(dirty, teacher, 4.0, beta, gamma, mask)[1:]
    torch.testing.assert_close(flsw, flsw_temperature(student[1:], teacher[1:], 4.0, beta, gamma))
    torch.testing.assert_close(cwsm_temperature(dirty, 4.0, beta, mask)[1:], cwsm_temperature(student[1:], 4.0, beta))


def test_confusing_rows_get_the_lower_temperature() -> None:
    """By hand: opposite logits weigh (1 + 1)^2 = 4, equal ones 0; an even guess 1 / 0.5, a sure one 1 / 1."""
    student, teacher = torch.tensor([[5.0, 0.0], [5.0, 0.0]]), torch.tensor([[5.0, 0.0], [-5.0, 0.0]])
    torch.testing.assert_close(
        flsw_temperature(student, teacher, 4.0, 0.5, 2.0), torch.tensor([5.0, 3.0]), rtol=1e-3, atol=0
    )
    sure = torch.tensor([[100.0, 0.0], [0.0, 0.0]])
    expected = 4 + torch.tensor([0.5, -0.5]) * (1 / 0.501 - 1 / 1.001)
    torch.testing.assert_close(cwsm_temperature(sure, 4.0), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_temperatures_are_finite(gamma: float) -> None:
    """Equal logits, whose cosine may round above 1, huge ones, none, and a class that is shut out."""
    student = torch.tensor([[1e4, 0.3, 1.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [1.0, 2.0, -torch.inf]])
    assert flsw_temperature(student, student.clone(), 4.0, 1.0, gamma).isfinite().all()
    many = 1e4 * torch.randn(200, 7)
    assert flsw_temperature(many, many.clone(), 4.0, 1.0, gamma).isfinite().all()
    assert cwsm_temperature(student).isfinite().all()
