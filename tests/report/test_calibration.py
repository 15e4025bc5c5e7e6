"""Calibration and confusion: by hand, on models that are calibrated by construction, and what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import confusion_matrix

from hfdistill.report.calibration import confusion, expected_calibration_error, most_confused, reliability

SIZES = st.tuples(st.integers(1, 40), st.integers(2, 5), st.integers(0, 1000))


def classified(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make random logits and labels."""
    random = np.random.default_rng(seed)
    return random.normal(scale=3, size=(rows, classes)), random.integers(0, classes, rows)


def sure(confidence: float, rows: int) -> np.ndarray:
    """Make logits of two classes that choose class 0 with this confidence."""
    return np.tile(np.log([confidence, 1 - confidence]), (rows, 1))


def test_calibration_error_by_hand():
    """Ten rows at 0.9 of which 6 are right, ten at 0.6 of which 9 are: 0.5 · 0.3 + 0.5 · 0.3."""
    logits = np.concatenate([sure(0.9, 10), sure(0.6, 10)])
    labels = np.array([0] * 6 + [1] * 4 + [0] * 9 + [1])
    assert expected_calibration_error(logits, labels) == pytest.approx(0.3)
    # in one bin the two mistakes cancel: confidence 0.75, accuracy 0.75
    assert expected_calibration_error(logits, labels, bins=1) == pytest.approx(0.0, abs=1e-12)


def test_a_calibrated_model_has_no_error():
    """Labels drawn from the model's own probabilities: what is left is the noise of drawing, 1 / √(rows per bin)."""
    random = np.random.default_rng(0)
    logits = random.normal(scale=2, size=(20_000, 3))
    labels = np.array([random.choice(3, p=row) for row in softmax(logits, axis=1)])
    assert expected_calibration_error(logits, labels) < 0.02
    assert expected_calibration_error(4 * logits, labels) > 0.1  # the same answers, too sure of themselves


@settings(max_examples=40, deadline=None)
@given(SIZES)
def test_the_order_of_rows_and_the_level_of_logits_do_not_matter(sizes: tuple[int, int, int]):
    """A softmax is free of a constant, and a set of rows has no order: another value would be a fault of indexing."""
    logits, labels = classified(*sizes)
    order = np.random.default_rng(1).permutation(len(labels))
    expected = expected_calibration_error(logits, labels)
    assert 0 <= expected <= 1
    assert expected_calibration_error(logits[order] + 100, labels[order]) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 20))
def test_bins_hold_every_row_once(sizes: tuple[int, int, int], bins: int):
    """Rows at an edge that fall into two bins, or into none, change the error unseen."""
    logits, labels = classified(*sizes)
    found = reliability(logits, labels, bins)
    assert [part.low for part in found[1:]] == [part.high for part in found[:-1]]
    assert (found[0].low, found[-1].high, sum(part.rows for part in found)) == (0.0, 1.0, len(labels))
    assert all(part.low < part.confidence <= part.high for part in found if part.rows)
    right = sum(part.rows * part.accuracy for part in found)
    assert right == pytest.approx((logits.argmax(axis=1) == labels).sum())


def test_a_bin_holds_its_upper_edge():
    """As in the paper; half sure of two classes is the most frequent edge."""
    assert [part.rows for part in reliability([[0.0, 0.0]], [0], bins=2)] == [1, 0]


def test_full_confidence_is_in_the_last_bin():
    """Sure models have a softmax of exactly 1, which lies on the last edge."""
    found = reliability([[300.0, -300.0]], [1], bins=15)
    assert (found[-1].rows, found[-1].confidence, found[-1].accuracy) == (1, 1.0, 0.0)
    assert expected_calibration_error([[300.0, -300.0]], [1]) == 1.0


def test_empty_bins_have_zeros():
    """NaN, the mean of nothing, is no JSON and no place in a figure."""
    empty = [part for part in reliability(sure(0.9, 3), [0, 0, 1]) if not part.rows]
    assert len(empty) == 14
    assert {(part.confidence, part.accuracy) for part in empty} == {(0.0, 0.0)}


@settings(max_examples=40, deadline=None)
@given(SIZES)
def test_confusion_is_scikit_learns(sizes: tuple[int, int, int]):
    """Rows are the truth, columns the answer: transposed, a report would name the wrong class as the victim."""
    logits, labels = classified(*sizes)
    found = np.array(confusion(logits, labels))
    expected = confusion_matrix(labels, logits.argmax(axis=1), labels=range(sizes[1]))
    assert found.tolist() == expected.tolist()
    assert found.sum() == len(labels)
    assert np.trace(found) == (logits.argmax(axis=1) == labels).sum()


def test_confusion_of_labels_that_the_model_does_not_know():
    """A student with fewer classes than the data: its matrix must still be square, to be laid beside others."""
    assert confusion([[1.0, 0.0]], [2], classes=3) == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_most_confused_pairs_come_first():
    """The diagonal is no mistake, nor is a pair that is never confused; equal counts keep the order of classes."""
    matrix = [[9, 2, 0], [5, 9, 2], [0, 0, 9]]
    assert most_confused(matrix) == [(1, 0, 5), (0, 1, 2), (1, 2, 2)]
    assert most_confused(matrix, count=1) == [(1, 0, 5)]


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[0.0, 1.0]], [0, 1], r"\(1, 2\) and \(2,\)"),
        ([0.0, 1.0], [0, 1], "two classes"),
        ([[0.0], [1.0]], [0, 0], "two classes"),
        (np.zeros((0, 2)), [], "at least one row"),
        ([[0.0, 1.0]], [2], "from 0 to 1"),
        ([[0.0, 1.0]], [-100], "leave them out"),
        ([[0.0, 1.0]], [0.5], "float64"),
        ([[0.0, np.nan]], [0], "finite"),
    ],
)
def test_what_is_no_classification_is_refused(logits: object, labels: object, message: str):
    """-100 as an index counts from the end, and NaN never is the largest: both give a plausible wrong figure."""
    for figure in (expected_calibration_error, confusion):
        with pytest.raises(ValueError, match=message):
            figure(logits, labels)


def test_no_bins_are_refused():
    """A division by no bin would be an error of numpy's that names none of the arguments."""
    with pytest.raises(ValueError, match="at least one bin"):
        reliability([[0.0, 1.0]], [0], bins=0)
