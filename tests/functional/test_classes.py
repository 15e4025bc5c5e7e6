"""Decoupled, correlated, standardised and hard targets: values by hand, invariances, limits, errors.

What every loss must hold to (precision, the teacher's gradient, extreme logits) is in tests/losses/test_contract.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfdistill.functional.classes import (
    class_correlation,
    decoupled_kl,
    decoupled_parts,
    hard_label_cross_entropy,
    standardized_kl,
)
from hfdistill.functional.response import soft_target_kl

PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.tuples(st.integers(3, 6), st.integers(3, 6))  # B, K
GARBAGE = (float("nan"), float("inf"), -float("inf"), 1e30)
INF = torch.inf


@dataclass(frozen=True)
class Formula:
    """A formula on logits (B, K), a mask (B,), and labels that are a function of the row's place."""

    name: str
    call: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    at_equality: float = 0.0  # tolerance of the value 0; inf: another value


FORMULAS = (
    Formula("decoupled_kl", lambda s, t, y, m: decoupled_kl(s, t, y, 2.0, 1.0, 3.0, m), 1e-12),
    Formula("class_correlation", lambda s, t, y, m: class_correlation(s, t, 2.0, 1.0, 2.0, m), 1e-4),
    Formula("standardized_kl", lambda s, t, y, m: standardized_kl(s, t, 2.0, m), 1e-12),
    Formula("hard_label_cross_entropy", lambda s, t, y, m: hard_label_cross_entropy(s, t, m), math.inf),
)
EVERY = pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.name)


def drawn(seed: int, rows: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """A student's logits, with a gradient, a teacher's, and labels."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher, torch.randint(0, classes, (rows,), generator=generator)


def gradient_of(value: Tensor, student: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, student)
    return gradient


@EVERY
@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_nothing_to_learn_at_equality_and_never_below_zero(
    formula: Formula, seed: int, sizes: tuple[int, int]
) -> None:
    """A student that has learnt everything must rest; correlations do so up to the 1e-8 in their denominator."""
    student, teacher, labels = drawn(seed, *sizes)
    assert formula.call(student, teacher, labels, None) > 0
    if formula.at_equality < math.inf:
        value = formula.call(student, student, labels, None)
        assert value.item() == pytest.approx(0, abs=formula.at_equality)
        assert gradient_of(value, student).abs().max() <= formula.at_equality


@EVERY
@PROPERTY
@given(seed=SEEDS, sizes=SIZES, garbage=st.sampled_from(GARBAGE))
def test_masked_rows_never_count(formula: Formula, seed: int, sizes: tuple[int, int], garbage: float) -> None:
    """Neither by their number nor by what stands in them, label included; the last three rows are kept here."""
    student, teacher, labels = drawn(seed, sizes[0] + 2, sizes[1])
    mask = torch.rand(len(student), generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[-3:] = True
    expected = formula.call(student[mask], teacher[mask], labels[mask], None)
    shut = ~mask[:, None]
    dirty = student.detach().masked_fill(shut, garbage).requires_grad_()
    value = formula.call(dirty, teacher.masked_fill(shut, garbage), labels.masked_fill(~mask, 99), mask.float())
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient_of(value, dirty), gradient_of(expected, student), rtol=1e-9, atol=1e-11)


@EVERY
@pytest.mark.parametrize("content", [0.5, float("nan"), float("inf")])
def test_all_masked_is_zero_with_a_gradient(formula: Formula, content: float) -> None:
    """A batch without a label must train nothing rather than break everything."""
    student = torch.full((3, 4), content, requires_grad=True)
    value = formula.call(student, torch.randn(3, 4), torch.full((3,), -100), torch.zeros(3))
    assert value == 0
    assert not gradient_of(value, student).any()


@EVERY
@pytest.mark.parametrize("level", [0.0, 0.1, 7.3, 1e4])
def test_rows_without_any_preference_have_bounded_gradients(formula: Formula, level: float) -> None:
    """A head that starts at zero answers the same for all: what rounding leaves of its mean is no direction.

    In float32 the mean of three times 0.1 is not 0.1, and a division by the rest would send a gradient of 1e7.
    """
    student = torch.full((4, 3), level, requires_grad=True)
    teacher = torch.randn(4, 3)
    value = formula.call(student, teacher, torch.tensor([0, 1, 2, 0]), None)
    (gradient,) = torch.autograd.grad(value, student, create_graph=True)
    assert value.isfinite()
    assert gradient.abs().max() < 10
    if gradient.requires_grad:
        assert gradient_of(gradient.square().sum(), student).isfinite().all()
    assert formula.call(teacher, student, torch.tensor([0, 1, 2, 0]), None).isfinite()


@pytest.mark.parametrize("formula", [FORMULAS[0], FORMULAS[2], FORMULAS[3]], ids=lambda formula: formula.name)
@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_classes_shut_out_on_both_sides_do_not_exist(formula: Formula, seed: int, sizes: tuple[int, int]) -> None:
    """Heads are cut to a task by -inf; the mean and deviation of such a row would be infinite."""
    student, teacher, labels = drawn(seed, *sizes)
    shut = [torch.nn.functional.pad(side.detach(), (0, 2), value=-INF) for side in (student, teacher)]
    own = shut[0].requires_grad_()
    value, expected = formula.call(own, shut[1], labels, None), formula.call(student, teacher, labels, None)
    torch.testing.assert_close(value, expected)
    gradient = gradient_of(value, own)
    torch.testing.assert_close(gradient[:, : sizes[1]], gradient_of(expected, student))
    assert not gradient[:, sizes[1] :].any()


@EVERY
@PROPERTY
@given(seed=SEEDS, sizes=SIZES, shift=st.floats(-50, 50))
def test_a_constant_added_to_a_row_is_the_same_answer(
    formula: Formula, seed: int, sizes: tuple[int, int], shift: float
) -> None:
    """Logits are known up to a constant: each side has its own."""
    student, teacher, labels = drawn(seed, *sizes)
    moved = formula.call(student + shift, teacher - 2 * shift, labels, None)
    torch.testing.assert_close(moved, formula.call(student, teacher, labels, None), rtol=1e-9, atol=1e-12)


@EVERY
def test_tokens_are_rows(formula: Formula) -> None:
    """(B, N, K) is the same as its rows one below the other."""
    student, teacher, labels = drawn(3, 6, 4)
    mask = torch.tensor([1, 1, 0, 1, 1, 0])
    tokens = [side.view(2, 3, *side.shape[1:]) for side in (student, teacher, labels, mask)]
    value = formula.call(tokens[0], tokens[1], tokens[2], tokens[3])
    torch.testing.assert_close(value, formula.call(student, teacher, labels, mask))


@PROPERTY
@given(seed=SEEDS, temperature=st.floats(0.5, 8), sizes=SIZES)
def test_the_two_parts_make_up_soft_targets(seed: int, temperature: float, sizes: tuple[int, int]) -> None:
    """KD = TCKD + (1 - p_t(y)) NCKD, row by row: DKD only weighs the two otherwise."""
    student, teacher, labels = drawn(seed, *sizes)
    for row, label in enumerate(labels):
        target, others = decoupled_parts(student[[row]], teacher[[row]], labels[[row]], temperature)
        unsure = 1 - (teacher[row] / temperature).softmax(-1)[label]
        torch.testing.assert_close(target + unsure * others, soft_target_kl(student[row], teacher[row], temperature))
    target, others = decoupled_parts(student, teacher, labels, temperature)
    weighed = decoupled_kl(student, teacher, labels, temperature, 0.5, 3.0)
    torch.testing.assert_close(weighed, 0.5 * target + 3 * others)


@pytest.mark.parametrize(
    ("label", "target", "others"),
    [
        (0, math.log(9 / 8) / 2, 0.0),
        (1, 0.25 * math.log(3 / 4) + 0.75 * math.log(9 / 8), 2 / 3 * math.log(4 / 3) + math.log(2 / 3) / 3),
    ],
)
def test_the_two_parts_by_hand(label: int, target: float, others: float) -> None:
    """The teacher gives 1/2, 1/4, 1/4, the student thirds."""
    teacher = torch.tensor([[math.log(2), 0, 0]], dtype=torch.float64)
    parts = decoupled_parts(torch.zeros_like(teacher), teacher, torch.tensor([label]), 1.0)
    assert [part.item() for part in parts] == pytest.approx([target, others])


def test_of_two_classes_the_others_teach_nothing() -> None:
    """There is one other class, sure of itself: what remains is soft targets."""
    student, teacher, labels = drawn(0, 5, 2)
    target, others = decoupled_parts(student, teacher, labels, 3.0)
    assert others == 0
    assert not gradient_of(others, student).any()
    torch.testing.assert_close(target, soft_target_kl(student, teacher, 3.0))


def test_a_sure_model_still_ranks_the_other_classes() -> None:
    """To shut the label out by subtracting 1000 leaves it the winner here; KL((σ(1), σ(-1)) || reversed) = tanh(½)."""
    student = torch.tensor([[1e4, 0.0, 1.0]], requires_grad=True)
    target, others = decoupled_parts(student, torch.tensor([[1e4, 1.0, 0.0]]), torch.tensor([0]), 1.0)
    assert target == 0
    assert others.item() == pytest.approx(math.tanh(0.5))
    assert not gradient_of(others, student)[0, 0]


def test_a_row_with_one_class_left_is_finite() -> None:
    """Shut out all but the label, and there is nothing to learn."""
    student = torch.tensor([[1.0, -INF, -INF], [1.0, 0.0, -INF]], requires_grad=True)
    labels = torch.tensor([0, 0])
    value = decoupled_kl(student, torch.tensor([[2.0, -INF, -INF], [1.0, 0.0, -INF]]), labels)
    assert value == 0
    assert gradient_of(value, student).isfinite().all()


@PROPERTY
@given(seed=SEEDS, scale=st.floats(0.1, 1), sizes=SIZES)
def test_correlations_ignore_how_peaked_the_probabilities_are(seed: int, scale: float, sizes: tuple[int, int]) -> None:
    """A P + (1 - A) / K is flatter and ranks the same, rows and columns: this is what makes DIST tolerant."""
    student, teacher, _ = drawn(seed, *sizes)
    student = student / 2  # the 1e-8 in the denominator shows where nothing varies
    flatter = (scale * student.softmax(-1) + (1 - scale) / sizes[1]).log()
    torch.testing.assert_close(
        class_correlation(flatter, teacher), class_correlation(student, teacher), rtol=0, atol=1e-3
    )


@PROPERTY
@given(seed=SEEDS, beta=st.floats(0, 3), gamma=st.floats(0, 3), temperature=st.floats(0.5, 4), sizes=SIZES)
def test_correlations_by_torch(
    seed: int, beta: float, gamma: float, temperature: float, sizes: tuple[int, int]
) -> None:
    """Pearson's correlation row by row and column by column, within its bounds."""
    student, teacher, _ = drawn(seed, *sizes)
    ours, theirs = ((side / temperature).softmax(-1).detach() for side in (student, teacher))

    def mean(first: Tensor, second: Tensor) -> Tensor:
        pairs = zip(first, second, strict=True)
        return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]).mean()

    expected = temperature**2 * (beta * (1 - mean(ours, theirs)) + gamma * (1 - mean(ours.T, theirs.T)))
    value = class_correlation(student, teacher, temperature, beta, gamma)
    torch.testing.assert_close(value.detach(), expected, rtol=1e-3, atol=1e-4)  # torch has no 1e-8
    assert 0 <= value <= 2 * (beta + gamma) * temperature**2


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("masked", [0, 2])
def test_fewer_than_three_rows_have_no_correlation(rows: int, masked: int) -> None:
    """Any two numbers lie on a line: the last batch of an epoch would add noise of ±1."""
    student, teacher, _ = drawn(0, rows + masked, 4)
    mask = torch.arange(rows + masked) < rows
    value = class_correlation(student, teacher, beta=0, mask=mask)
    assert value == 0
    assert not gradient_of(value, student).any()
    whole = class_correlation(student, teacher, mask=mask)
    torch.testing.assert_close(whole, class_correlation(student, teacher, gamma=0, mask=mask))
    assert gradient_of(whole, student).any()


def test_of_two_classes_only_rows_correlate() -> None:
    """Why the loss refuses two classes: half of it is ±1 whatever the student does."""
    student, teacher, _ = drawn(0, 5, 2)
    assert gradient_of(class_correlation(student, teacher, gamma=0), student).abs().max() < 1e-6
    assert gradient_of(class_correlation(student, teacher, beta=0), student).abs().max() > 1e-2


@PROPERTY
@given(seed=SEEDS, scales=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), shift=st.floats(-9, 9), sizes=SIZES)
def test_standardised_logits_have_no_size(
    seed: int, scales: tuple[float, float], shift: float, sizes: tuple[int, int]
) -> None:
    """A x + b with a > 0 is the same answer: a small student need not reach a large teacher's logits."""
    student, teacher, _ = drawn(seed, *sizes)
    moved = standardized_kl(scales[0] * student + shift, scales[1] * teacher - shift)
    torch.testing.assert_close(moved, standardized_kl(student, teacher), rtol=1e-4, atol=1e-6)


def test_standardised_logits_by_hand() -> None:
    """(1, 0, -1) has the unbiased deviation 1; against its reverse the KL is 2 (p_1 - p_3)."""
    logits = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    p = logits[0].softmax(-1)
    value = standardized_kl(5 * logits.flip(-1) + 2, logits, 1.0)
    assert value.item() == pytest.approx(2 * (p[0] - p[2]).item(), rel=1e-6)
    softer = (logits[0] / 2).softmax(-1)
    assert standardized_kl(logits.flip(-1), logits).item() == pytest.approx(
        4 * (softer[0] - softer[2]).item(), rel=1e-6
    )


def test_two_standardised_logits_say_nothing_but_the_winner() -> None:
    """Why the loss refuses two classes."""
    student, teacher, _ = drawn(0, 5, 2)
    agreed = standardized_kl(student, student.detach() * 3 + 1)
    assert agreed.item() == pytest.approx(0, abs=1e-9)
    assert gradient_of(standardized_kl(student, teacher), student).abs().max() < 1e-6


@PROPERTY
@given(seed=SEEDS, sizes=SIZES)
def test_the_teachers_choice_is_the_label(seed: int, sizes: tuple[int, int]) -> None:
    """With a teacher that is right it is the cross-entropy, and nothing else of the teacher is read."""
    student, teacher, labels = drawn(seed, *sizes)
    one_hot = torch.nn.functional.one_hot(labels, sizes[1]).double()
    expected = torch.nn.functional.cross_entropy(student, labels)
    value = hard_label_cross_entropy(student, one_hot)
    torch.testing.assert_close(value, expected)
    gradient = (student.softmax(-1) - one_hot).detach() / sizes[0]
    torch.testing.assert_close(gradient_of(value, student), gradient)
    sharper = hard_label_cross_entropy(student, 7 * teacher)
    torch.testing.assert_close(sharper, hard_label_cross_entropy(student, teacher))


@pytest.mark.parametrize("shape", [(), (1,), (4, 1)])
def test_one_temperature_per_row(shape: tuple[int, ...]) -> None:
    """Learnt and per-sample temperatures are tensors."""
    student, teacher, labels = drawn(0, 4, 3)
    temperature = torch.rand(shape, dtype=torch.float64) + 1
    each = temperature.expand(4, 1)[:, 0].tolist()
    rows = [decoupled_kl(student[[b]], teacher[[b]], labels[[b]], each[b]) for b in range(4)]
    torch.testing.assert_close(decoupled_kl(student, teacher, labels, temperature), torch.stack(rows).mean())
    rows = [standardized_kl(student[[b]], teacher[[b]], each[b]) for b in range(4)]
    torch.testing.assert_close(standardized_kl(student, teacher, temperature), torch.stack(rows).mean())


ROWS = torch.zeros(2, 3)
LABELS = torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decoupled_kl(ROWS, ROWS, LABELS, 0.0), "temperature above 0, got 0.0"),
        (lambda: decoupled_kl(ROWS, ROWS, LABELS[:, None]), r"rows \[2, 1\] as in the mask"),
        (lambda: decoupled_kl(ROWS, ROWS[:, :2], LABELS), "one shape on both sides"),
        (lambda: decoupled_kl(ROWS[:, :1], ROWS[:, :1], LABELS), "at least 2 classes"),
        (lambda: class_correlation(ROWS, ROWS, -1.0), "temperature above 0, got -1.0"),
        (lambda: class_correlation(ROWS, ROWS, mask=torch.ones(3)), r"rows \[3\] as in the mask"),
        (lambda: standardized_kl(ROWS, ROWS, float("nan")), "temperature above 0, got nan"),
        (lambda: standardized_kl(ROWS, ROWS[:1]), "one shape on both sides"),
        (lambda: hard_label_cross_entropy(ROWS[:, :1], ROWS[:, :1]), "at least 2 classes"),
    ],
)
def test_errors_say_what_is_wrong(call: Callable[[], Tensor], message: str) -> None:
    """Torch would broadcast some of these without a word."""
    with pytest.raises(ValueError, match=message):
        call()
