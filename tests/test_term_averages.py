"""Averages of the logged terms: weighted, per name, over processes, and without waiting for the device."""

from __future__ import annotations

import pytest
import torch

from hfdistill.term_averages import TermAverages


def test_the_mean_is_over_the_batches_since_the_last_log() -> None:
    """A log line speaks of its own stretch of training only."""
    averages = TermAverages(lambda values: values)
    averages.add({"kd": torch.tensor(1.0), "task": torch.tensor(5.0)})
    averages.add({"kd": torch.tensor(3.0), "task": torch.tensor(6.0)})
    assert averages.pop("loss/") == {"loss/kd": 2.0, "loss/task": 5.5}
    assert averages.pop("loss/") == {}
    averages.add({"kd": torch.tensor(7.0)})
    assert averages.pop("eval_loss/") == {"eval_loss/kd": 7.0}


def test_batches_weigh_by_what_they_count() -> None:
    """In evaluation a batch of many tokens counts more; one that counts nothing leaves no trace and no NaN."""
    averages = TermAverages(lambda values: values)
    averages.add({"kd": torch.tensor(1.0)}, {"kd": torch.tensor(30.0)})
    averages.add({"kd": torch.tensor(5.0)}, {"kd": 10.0})
    averages.add({"kd": torch.tensor(99.0)}, {"kd": torch.tensor(0.0)})
    assert averages.pop("") == {"kd": 2.0}
    averages.add({"kd": torch.tensor(1.0)}, {"kd": torch.tensor(0.0)})
    assert averages.pop("") == {"kd": 0.0}


def test_a_term_counts_only_where_it_ran() -> None:
    """A loss that is switched on half way must not be averaged with zeros."""
    averages = TermAverages(lambda values: values)
    averages.add({"hidden": torch.tensor(4.0)})
    averages.add({"kd": torch.tensor(1.0)})
    assert averages.pop("") == {"hidden": 4.0, "kd": 1.0}


def test_processes_are_averaged_by_weight() -> None:
    """The mean of means would let a process with one row count as much as one with a full batch."""
    other = {"total": 1.0 * 30, "weight": 30.0}

    def reduce(values: torch.Tensor) -> torch.Tensor:
        return (values + torch.tensor([[other["total"]], [other["weight"]]])) / 2

    averages = TermAverages(reduce)
    averages.add({"kd": torch.tensor(5.0)}, {"kd": torch.tensor(10.0)})
    assert averages.pop("")["kd"] == pytest.approx((5.0 * 10 + 1.0 * 30) / 40)


def test_values_of_any_precision_are_floats_in_the_log() -> None:
    """A logger cannot write tensors."""
    averages = TermAverages(lambda values: values)
    averages.add({"a": torch.tensor(0.5, dtype=torch.bfloat16), "b": torch.tensor(0.25, dtype=torch.float64)})
    assert averages.pop("") == {"a": 0.5, "b": 0.25}
