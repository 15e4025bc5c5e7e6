"""The benchmark of large vocabularies, at toy size: its rows are one loss, and each is measured by itself."""

from __future__ import annotations

import argparse

import pytest
import torch

from benchmarks import vocabulary
from benchmarks.machine import add_options


def options() -> argparse.Namespace:
    """Two rows of four tokens, 40 words."""
    parser = argparse.ArgumentParser()
    add_options(parser, rounds=1)
    sizes = {"rows": 2, "tokens": 4, "vocabulary": 40, "width": 8}
    return argparse.Namespace(**vars(parser.parse_args([])), **sizes, half=False)


def test_all_rows_compute_the_same() -> None:
    """A row that learns something else, or less, would be cheaper for that."""
    results = []
    for name in vocabulary.PASSES:
        student, teacher = vocabulary.heads(options())
        loss = torch.tensor(vocabulary.step_of(name, student, teacher)())
        results.append([loss, student.features.grad, student.weight.grad])
    assert results[0][0] > 0.01, "features and heads of random numbers must differ"
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-7)


def test_rows_are_measured_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that one row leaves behind would be there before the next one begins."""
    monkeypatch.setattr(vocabulary, "PASSES", {name: vocabulary.PASSES[name] for name in ("plain",)})
    section = vocabulary.measured(options())
    assert section.memory.keys() == {"plain"}
    assert "plain: peak memory over plain" in section.figures
    assert len(section.seconds["plain"]) == 1
