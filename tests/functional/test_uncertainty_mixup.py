"""Uncertainty-aware mixup: scores by hand, the step in mixing, who is kept, and both labels."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from hfdistill.functional.supervision import mixed_cross_entropy, unix_mask, unix_mix, unix_scores

PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)


def drawn(seed: int, rows: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """A student's logits, something to mix, and labels."""
    generator = torch.Generator().manual_seed(seed)
    student, inputs = 2 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return student, inputs, torch.randint(classes, (rows,), generator=generator)


def test_scores_by_hand() -> None:
    """An even guess over two classes, and 3/4 against 1/4."""
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    torch.testing.assert_close(unix_scores(logits), torch.tensor([math.log(2.0), entropy]))
    torch.testing.assert_close(unix_scores(logits, "least_confidence"), torch.tensor([0.5, 0.25]))
    torch.testing.assert_close(unix_scores(logits, "margin"), torch.tensor([0.0, -0.5]))
    shut_out = torch.cat([logits, torch.full((2, 1), -torch.inf)], dim=1)
    torch.testing.assert_close(unix_scores(shut_out), unix_scores(logits))


@PROPERTY
@given(rows=st.integers(1, 20), begin=st.integers(0, 20), sharpness=st.floats(0.1, 100))
def test_mixing_grows_with_certainty_and_sets_in_at_begin(rows: int, begin: int, sharpness: float) -> None:
    """Monotone, above one half exactly from rank b on, and in the limit a step."""
    mask = unix_mask(rows, begin, sharpness)
    assert (mask.diff() >= 0).all()
    assert torch.equal(mask > 0.5, torch.arange(rows) >= begin)
    torch.testing.assert_close(unix_mask(rows, begin, 1e9), (torch.arange(rows) >= begin).double())


@PROPERTY
@given(seed=SEEDS, strategy=st.sampled_from(["entropy", "least_confidence", "margin"]))
def test_a_share_of_zero_keeps_the_most_uncertain_rows_as_they_are(seed: int, strategy: str) -> None:
    """The k with the largest scores, largest first; with everything mixed at full strength the partners alone."""
    student, inputs, _ = drawn(seed, 6, 4)
    partners = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    mixed, order, coefficients = unix_mix(inputs, student, partners, 0.0, 4, 3, strategy=strategy)
    assert torch.equal(mixed, inputs[order])
    assert not coefficients.any()
    scores = unix_scores(student, strategy)
    assert torch.equal(scores[order], scores.sort(descending=True).values[:4])
    mixed, _, coefficients = unix_mix(inputs, student, partners, 1.0, 4, 0, 1e9, strategy)
    assert torch.equal(mixed, inputs[partners[:4]])
    assert torch.equal(coefficients, torch.ones(4, dtype=torch.float64))


def test_images_are_mixed_as_rows_are() -> None:
    """One coefficient per row, whatever a row is made of."""
    student, images, _ = drawn(0, 4, 12)
    partners = torch.tensor([1, 2, 3, 0])
    flat, order, _ = unix_mix(images, student, partners, 0.6, 3, 2)
    mixed, same_order, _ = unix_mix(images.view(4, 3, 2, 2), student, partners, 0.6, 3, 2)
    assert torch.equal(mixed.flatten(1), flat)
    assert torch.equal(same_order, order)


def test_scores_that_make_no_sense_are_refused() -> None:
    """A misspelt strategy, and a single class, of which every model is sure."""
    with pytest.raises(ValueError, match=r"among \('entropy', 'least_confidence', 'margin'\), got 'variance'"):
        unix_scores(torch.zeros(2, 3), "variance")
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        unix_scores(torch.zeros(2, 1))


def test_mixed_cross_entropy_smooths_both_labels() -> None:
    """With the share that torch's cross-entropy means by label smoothing; a missing label has nothing to smooth."""
    student, _, labels = drawn(0, 3, 4)
    partners, share = torch.tensor([1, -100, 3]), torch.tensor([0.0, 0.3, 0.9])
    own, other = (
        cross_entropy(student, side, reduction="none", label_smoothing=0.2, ignore_index=-100)
        for side in (labels, partners)
    )
    expected = ((1 - share) * own + share * other).sum() / 2.7
    torch.testing.assert_close(mixed_cross_entropy(student, labels, partners, share, 0.2), expected)


def test_mixed_cross_entropy_is_that_of_both_labels() -> None:
    """(1 - c) CE(y) + c CE(y') of each row; a label that is missing on one side leaves the other's share."""
    student, _, labels = drawn(0, 3, 4)
    partners, share = torch.tensor([1, 0, 3]), torch.tensor([0.0, 0.3, 0.9])
    own, other = (cross_entropy(student, side, reduction="none") for side in (labels, partners))
    expected = (1 - share) * own + share * other
    torch.testing.assert_close(mixed_cross_entropy(student, labels, partners, share), expected.mean())
    partly = mixed_cross_entropy(student, labels, torch.tensor([1, -100, 3]), share)
    torch.testing.assert_close(partly, (expected.sum() - 0.3 * other[1]) / 2.7)
    tokens = mixed_cross_entropy(student.view(3, 1, 4), labels[:, None], partners[:, None], share)
    torch.testing.assert_close(tokens, expected.mean())
    nothing = torch.full((3,), -100)
    empty = torch.full((3, 4), torch.nan, requires_grad=True)
    value = mixed_cross_entropy(empty, nothing, nothing, share)
    assert value == 0
    (gradient,) = torch.autograd.grad(value, empty)
    assert not gradient.any()
