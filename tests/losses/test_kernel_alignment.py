"""Kernel alignment as a loss: which rows it aligns, its options, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from torch import Tensor
from toy_representations import LENGTHS, STUDENT, TEACHER, Scene, toy_anatomy, toy_scene

from hfdistill.functional.kernels import kernel_alignment
from hfdistill.losses.feature.kernel_alignment import KernelAlignmentLoss
from hfdistill.losses.pooling import pooled_vector
from hfdistill.representations import Batch, Representations

LAST = [(-1, -1)]


def bound(**keywords: Any) -> KernelAlignmentLoss:
    """A loss on the last layers, bound."""
    loss = KernelAlignmentLoss(LAST, **keywords)
    loss.bind(STUDENT, TEACHER)
    return loss


def last_states(scene: Scene) -> tuple[Tensor, Tensor]:
    """The states of the last layers."""
    return scene.student.hidden_states[2], scene.teacher.hidden_states[4]


@pytest.mark.data
@pytest.mark.parametrize("samples", ["tokens", "rows"])
@pytest.mark.parametrize(
    ("name", "keywords"),
    [("cka/centred", {}), ("cka/uncentred", {"centre": False}), ("cka/debiased", {"debiased": True})],
)
def test_the_class_gives_the_golden_similarity(
    name: str, keywords: dict[str, bool], samples: str, shared: Path
) -> None:
    """As the tokens of one sentence, and as sentences of one token."""
    case = next(case for case in golden.read_cases(shared / "methods" / "golden.json") if case["id"] == name)
    axis = 0 if samples == "tokens" else 1
    states = [torch.tensor(case["inputs"][side], dtype=torch.float64).unsqueeze(axis) for side in "st"]
    loss = KernelAlignmentLoss([(1, 1)], samples, **keywords)
    loss.bind(toy_anatomy(4, 1), toy_anatomy(7, 1))
    student, teacher = (Representations(hidden_states={1: side}) for side in states)
    value = loss(student, teacher, Batch(len(states[0])))
    assert value.item() == pytest.approx(1 - case["expected"], rel=1e-9)


@pytest.mark.parametrize("keywords", [{}, {"centre": False}, {"debiased": True}])
def test_tokens_of_all_sentences_are_one_set(keywords: dict[str, bool]) -> None:
    """A mean of alignments within sentences would be another loss; padding is in no set."""
    scene = toy_scene()
    rows = [torch.cat([state[:n] for state, n in zip(side, LENGTHS, strict=True)]) for side in last_states(scene)]
    loss = bound(**keywords)
    torch.testing.assert_close(loss(*scene.parts()), kernel_alignment(*rows, **keywords))
    assert loss.count(scene.batch) == sum(LENGTHS)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_rows_are_one_vector_each(pooling: str) -> None:
    """A row without a real token has no vector."""
    scene = toy_scene(lengths=(5, 2, 0, 4))
    vectors = [pooled_vector(side, scene.batch.mask, pooling)[[0, 1, 3]] for side in last_states(scene)]
    loss = bound(samples="rows", pooling=pooling)
    torch.testing.assert_close(loss(*scene.parts()), kernel_alignment(*vectors))
    assert loss.count(scene.batch) == 3


def test_layers_are_summed() -> None:
    """As in every loss over layers, so that one weight fits one layer."""
    loss = KernelAlignmentLoss()
    loss.bind(STUDENT, TEACHER)
    assert loss.pairs == ((0, 0), (1, 2), (2, 4))
    scene = toy_scene()
    alone = []
    for pair in loss.pairs:
        single = KernelAlignmentLoss([pair])
        single.bind(STUDENT, TEACHER)
        alone.append(single(*scene.parts()))
    torch.testing.assert_close(loss(*scene.parts()), torch.stack(alone).sum())


@pytest.mark.parametrize("samples", ["tokens", "rows"])
def test_gather_brings_every_sample_and_its_mask(samples: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process's sentences may be longer: tokens are gathered as a list, never as a rectangle."""

    def gathered(rows: Tensor) -> Tensor:
        assert rows.ndim == (1 if rows.dtype == torch.bool else 2)
        return torch.cat([rows, rows[:2].flip(-1)])

    monkeypatch.setattr("hfdistill.losses.batch_relation.gathered_rows", gathered)
    scene = toy_scene()
    assert scene.batch.mask is not None
    if samples == "tokens":
        sides, mask = [side.flatten(0, 1) for side in last_states(scene)], scene.batch.mask.bool().flatten()
    else:
        sides, mask = [pooled_vector(side, scene.batch.mask, "mean") for side in last_states(scene)], torch.ones(3) > 0
    expected = kernel_alignment(*(gathered(side) for side in sides), gathered(mask))
    value = bound(samples=samples, gather=True)(*scene.parts())
    torch.testing.assert_close(value, expected)
    assert value != bound(samples=samples)(*scene.parts())


def test_settings_that_exclude_each_other_are_refused() -> None:
    """The unbiased estimate has no uncentred form; it would be given in silence."""
    with pytest.raises(ValueError, match=r"debiased=True cannot go with centre=False.*Leave one of them out"):
        KernelAlignmentLoss(centre=False, debiased=True)
    with pytest.raises(ValueError, match=r"samples must be one of 'tokens', 'rows', got 'token'"):
        KernelAlignmentLoss(samples="token")


def test_other_numbers_of_tokens_are_refused() -> None:
    """Token by token is what relates the two sides; one vector per row is free of it."""
    scene = toy_scene()
    scene.teacher.hidden_states = {4: torch.randn(3, 7, 12)}
    with pytest.raises(ValueError, match=r"got 5 tokens \(student\) and 7 \(teacher\).*one vector per row"):
        bound()(*scene.parts())
