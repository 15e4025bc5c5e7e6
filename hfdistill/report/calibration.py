"""Is a model as often right as it says, and which classes does it take for which? Figures of logits and true classes.

Logits are (B, K) with K >= 2, labels (B,) are classes; confidence is the largest softmax probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from hfdistill.report.contents import ReliabilityBin

Array: TypeAlias = npt.NDArray[Any]


def expected_calibration_error(logits: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15) -> float:
    """Mean distance of confidence and accuracy over bins of confidence, in [0, 1]; 0 for a calibrated model.

    Σ_b (n_b / B) |accuracy_b - confidence_b|. Guo et al. 2017, On Calibration of Modern Neural Networks,
    arXiv 1706.04599, equation 3, with its 15 bins of equal width.

    Args:
        logits: (B, K).
        labels: (B,).
        bins: Number of bins.

    Raises:
        ValueError: No rows, shapes that do not fit, labels that are no classes, logits that are not finite.
    """
    found = reliability(logits, labels, bins)
    rows = sum(part.rows for part in found)
    return sum(part.rows * abs(part.accuracy - part.confidence) for part in found) / rows


def reliability(logits: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15) -> list[ReliabilityBin]:
    """Rows by confidence, in bins of equal width that hold their upper edge: what a reliability diagram shows.

    Args and Raises as in `expected_calibration_error`.
    """
    scores, expected = _scored(logits, labels)
    if bins < 1:
        raise ValueError(f"expected at least one bin of confidence, got {bins}.")
    probabilities = softmax(scores, axis=1)  # (B, K)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == expected
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)  # (low, high] as in the paper
    found = []
    for index in range(bins):
        inside = place == index
        rows = int(inside.sum())
        means = [float(values[inside].mean()) if rows else 0.0 for values in (confidence, right)]
        found.append(ReliabilityBin(float(edges[index]), float(edges[index + 1]), rows, *means))
    return found


def confusion(logits: npt.ArrayLike, labels: npt.ArrayLike, classes: int | None = None) -> list[list[int]]:
    """How many rows of each true class (rows of the matrix) were taken for each class (columns).

    Args:
        logits: (B, K).
        labels: (B,).
        classes: Size of the matrix where a label may lie beyond the K classes that the model knows; None: K.

    Raises:
        ValueError: See `expected_calibration_error`; also, `classes` is below K.
    """
    scores, expected = _scored(logits, labels, classes)
    size = classes or scores.shape[1]
    counts = np.zeros((size, size), dtype=int)
    np.add.at(counts, (expected, scores.argmax(axis=1)), 1)
    matrix: list[list[int]] = counts.tolist()
    return matrix


def most_confused(matrix: Sequence[Sequence[int]], count: int = 10) -> list[tuple[int, int, int]]:
    """The pairs (true class, predicted class, rows) that are mistaken most often, the most frequent first.

    Args:
        matrix: See `confusion`.
        count: How many pairs at most; pairs that are never confused are left out.
    """
    mistakes = [
        (true, predicted, rows)
        for true, line in enumerate(matrix)
        for predicted, rows in enumerate(line)
        if true != predicted and rows
    ]
    return sorted(mistakes, key=lambda mistake: (-mistake[2], mistake))[:count]


def _scored(logits: npt.ArrayLike, labels: npt.ArrayLike, classes: int | None = None) -> tuple[Array, Array]:
    scores, expected = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 2 or scores.shape[1] < 2 or expected.shape != (len(scores),) or len(scores) == 0:
        raise ValueError(
            f"expected logits (B, K) of at least one row and two classes, and labels (B,), got {scores.shape} and "
            f"{expected.shape}. Confidence and confusion are those of a classifier."
        )
    size = scores.shape[1] if classes is None else classes
    whole = np.issubdtype(expected.dtype, np.integer)
    if size < scores.shape[1] or not whole or expected.min() < 0 or expected.max() >= size:
        raise ValueError(
            f"expected labels from 0 to {size - 1} as integers, of at least the {scores.shape[1]} classes of the "
            f"logits, got {expected.dtype} with values {np.unique(expected)[:5]}. -100 and -1 mark rows without a "
            "label: leave them out on both sides."
        )
    if not np.isfinite(scores).all():
        raise ValueError("expected finite logits, got NaN or infinity: look for a run that diverged.")
    return scores, expected
