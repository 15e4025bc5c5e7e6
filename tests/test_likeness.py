"""Does a student answer as its teacher does: agreement and divergence by hand and by scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from hfdistill.likeness import agreement, mean_kl


def test_agreement_counts_equal_choices():
    """Two of three rows choose the same class; the logits' size must not matter."""
    student = torch.tensor([[9.0, 1.0], [0.0, 0.1], [2.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0], [5.0, 9.0], [1.0, 2.0]])
    assert agreement(student, teacher) == pytest.approx(2 / 3)
    assert agreement(student, student) == 1.0


def test_agreement_of_one_output_is_pearsons():
    """One output has no argmax: every pair of regression models would agree fully."""
    student, teacher = np.random.default_rng(0).normal(size=(2, 20))
    expected = stats.pearsonr(student, teacher)[0]
    assert agreement(student, teacher) == pytest.approx(expected, rel=1e-12)
    assert agreement(student[:, None], teacher[:, None]) == pytest.approx(expected, rel=1e-12)
    assert agreement(-teacher, teacher) == pytest.approx(-1.0)
    assert agreement(np.full(20, 0.1), teacher) == agreement([1.0], [2.0]) == 0.0


def test_mean_kl_against_scipy():
    """The mean over rows of KL(teacher || student): the other direction, or a sum, would be another number."""
    student, teacher = np.random.default_rng(1).normal(size=(2, 7, 4))
    rows = special.rel_entr(special.softmax(teacher, axis=1), special.softmax(student, axis=1)).sum(axis=1)
    assert mean_kl(student, teacher) == pytest.approx(rows.mean(), rel=1e-9)
    assert mean_kl(teacher, student) != pytest.approx(rows.mean(), rel=1e-2)


def test_mean_kl_by_hand():
    """The teacher says 3/4, the student 1/2: 3/4 ln(3/2) + 1/4 ln(1/2) nats."""
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert mean_kl([[0.0, 0.0]], [[math.log(3), 0.0]]) == pytest.approx(expected)


def test_mean_kl_is_zero_at_equality_and_finite_far_away():
    """Sure models have logits whose softmax is 0 in float32; a figure of NaN would spoil a table."""
    far = torch.tensor([[300.0, -300.0]])
    assert mean_kl(far, far) == 0.0
    assert mean_kl(-far, far) == pytest.approx(600.0)
    shifted = torch.randn(50, 3)
    assert 0.0 <= mean_kl(shifted + 7, shifted) < 1e-6


def test_mean_kl_of_one_output_is_the_mean_squared_difference():
    """The softmax of one output is 1: its KL would be 0 for every student."""
    assert mean_kl([1.0, 2.0], [0.0, 4.0]) == pytest.approx(2.5)


def test_logits_may_be_arrays_or_tensors_of_any_float_type():
    """Trainer gives numpy arrays, memory-mapped ones are read-only, models give bfloat16 with a gradient."""
    frozen = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float16)
    frozen.flags.writeable = False
    live = torch.tensor([[2.0, 0.0], [1.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    assert agreement(live, frozen) == 0.5
    assert mean_kl(live, frozen) > 0


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 3), r"\(3, 2\) \(student\) and \(3, 3\)"),
        (torch.zeros(3, 2), torch.zeros(1, 2), "one shape"),
        (torch.zeros(0, 2), torch.zeros(0, 2), "at least one row"),
        (torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), "only the valid tokens"),
        (torch.tensor([[0.0, math.nan]]), torch.zeros(1, 2), "finite"),
        (torch.zeros(1, 2), torch.tensor([[0.0, -math.inf]]), "finite"),
    ],
)
def test_logits_that_cannot_be_compared_are_refused(student: torch.Tensor, teacher: torch.Tensor, message: str):
    """Broadcasting would compare them all the same."""
    for figure in (agreement, mean_kl):
        with pytest.raises(ValueError, match=message):
            figure(student, teacher)
