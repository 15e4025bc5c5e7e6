"""Attention losses block by block: the value and gradient of whole maps, without a whole map in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as some
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from toy_representations import toy_anatomy

from hfdistill import functional
from hfdistill.functional import chunks
from hfdistill.functional.mobilebert import attention_cross_entropy, attention_probability_cross_entropy
from hfdistill.losses import AttentionLoss, AttentionMapLoss, AttentionRelationLoss
from hfdistill.losses.relation.attention_relation import MINILM
from hfdistill.representations import Attention, Batch, Representations

Whole = Callable[[Attention, Attention, Tensor | None, Tensor | None], Tensor]
PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)


def of_scores(formula: Callable[..., Tensor]) -> Whole:
    """A formula of whole scores."""
    return lambda ours, theirs, mask, allowed: formula(ours.scores, theirs.scores, mask, allowed)


def of_probabilities(formula: Callable[..., Tensor]) -> Whole:
    """A formula of whole probabilities."""
    return lambda ours, theirs, mask, allowed: formula(ours.probabilities, theirs.probabilities, mask)


def of_sums(ours: Attention, theirs: Attention, mask: Tensor | None, allowed: Tensor | None) -> Tensor:
    """Heads added first."""
    return functional.attention_score_mse(*(side.scores.sum(1, True) for side in (ours, theirs)), mask, allowed)


def of_padded_square(ours: Attention, theirs: Attention, mask: Tensor | None, allowed: Tensor | None) -> Tensor:
    """TinyBERT's code: padded keys are 0 on both sides, and count."""
    sides = ours.scores, theirs.scores
    if mask is not None:
        sides = sides[0] * mask[:, None, None], sides[1] * mask[:, None, None]
    return functional.attention_score_mse_tinybert(*sides)


def of_relations(ours: Attention, theirs: Attention, mask: Tensor | None, allowed: Tensor | None) -> Tensor:
    """MiniLM's two relations, in as many heads as the models have."""
    heads = ours.scores.shape[1]
    sides = [[side.merged(name) for side in (ours, theirs) for name in pair.split("-")] for pair in MINILM]
    return sum(functional.relation_kl(*vectors, heads, mask) for vectors in sides)  # type: ignore[return-value]


KINDS: dict[str, tuple[Callable[[], AttentionLoss], Whole]] = {
    "mse": (lambda: AttentionMapLoss([(1, 1)]), of_scores(functional.attention_score_mse)),
    "cross_entropy": (
        lambda: AttentionMapLoss([(1, 1)], divergence="cross_entropy"),
        of_scores(attention_cross_entropy),
    ),
    "probabilities": (
        lambda: AttentionMapLoss([(1, 1)], target="probabilities"),
        of_probabilities(functional.attention_probability_mse),
    ),
    "kl": (
        lambda: AttentionMapLoss([(1, 1)], target="probabilities", divergence="kl"),
        of_probabilities(functional.attention_probability_kl),
    ),
    "cross_entropy of probabilities": (
        lambda: AttentionMapLoss([(1, 1)], target="probabilities", divergence="cross_entropy"),
        of_probabilities(attention_probability_cross_entropy),
    ),
    "tinybert": (lambda: AttentionMapLoss([(1, 1)], reduction="tinybert"), of_padded_square),
    "sum": (lambda: AttentionMapLoss([(1, 1)], heads="sum"), of_sums),
    "relations": (lambda: AttentionRelationLoss([(1, 1)], MINILM), of_relations),
}


class Case:
    """Two attentions of some heads in float64, and a mask, with all that a backend may show, drawn by a seed."""

    def __init__(self, seed: int, rows: int, tokens: int, heads: int = 2, grouped: bool = True) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.rows, self.tokens, self.heads = rows, tokens, heads
        lengths = torch.randint(0, tokens + 1, (rows,), generator=self.generator)
        real = torch.arange(tokens) < lengths[:, None]  # (B, N)
        real = [real, real.flip(1), real[:, torch.randperm(tokens, generator=self.generator)]][seed // 8 % 3]
        self.mask = None if seed % 3 == 0 else real.long()
        causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]
        self.allowed = None if seed % 2 else causal & (real[:, None, None] if seed % 4 else causal)
        self.student, self.teacher = self.attention(3, grouped and seed % 5 == 0), self.attention(4, False)
        self.teacher.allowed = self.allowed
        self.student.allowed = self.allowed if seed % 3 else None
        if seed % 7 == 0:  # nothing but these in a cache
            scores, probabilities = self.teacher.scores, self.teacher.probabilities
            own = self.teacher
            self.teacher = Attention(own.query, own.key, own.value, allowed=self.allowed)
            self.teacher.given_scores, self.teacher.given_probabilities = scores, probabilities

    def attention(self, width: int, grouped: bool) -> Attention:
        """Queries, keys, values and a bias, which rows and heads may share."""
        keys = 1 if grouped else self.heads
        query, key, value = (
            torch.randn(self.rows, heads, self.tokens, width, generator=self.generator, dtype=torch.float64)
            for heads in (self.heads, keys, keys)
        )
        shape = [(1, self.heads), (self.rows, 1), (self.rows, self.heads)][width % 3]
        bias = torch.randn(*shape, self.tokens, self.tokens, generator=self.generator, dtype=torch.float64)
        return Attention(query, key, value, width**-0.5, bias)

    def leaves(self) -> list[Tensor]:
        """What the student learns with, as leaves."""
        held = (vars(self.student)[name] for name in ("query", "key", "value", "bias"))
        return [tensor.requires_grad_() for tensor in held if tensor is not None]

    def value(self, loss: AttentionLoss) -> Tensor:
        """Of the loss."""
        shown = (Representations(attentions={1: side}) for side in (self.student, self.teacher))
        loss.bind(*(toy_anatomy(width, 1, self.heads) for width in (6 * self.heads, 6 * self.heads)))
        return loss(*shown, Batch(self.rows, mask=self.mask))


def gradients(value: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Of each leaf; zeros where none reaches it."""
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if slope is None else slope for leaf, slope in zip(leaves, found, strict=True)]


@pytest.mark.parametrize("name", KINDS)
@PROPERTY
@given(some.integers(1, 10**6), some.integers(1, 4), some.integers(1, 5), some.sampled_from([2, 1, 3, 6]))
@example(seed=3, rows=2, tokens=3, maps=2)  # blocks of 2 and of 1 of the 3 heads, all tokens real
def test_blocks_compute_what_whole_maps_would(name: str, seed: int, rows: int, tokens: int, maps: int) -> None:
    """For any padding, pattern, bias, grouped keys, cache and size of the blocks."""
    make, whole = KINDS[name]
    case = Case(seed, rows, tokens, heads=3, grouped=name != "relations")
    leaves = case.leaves()
    expected = whole(case.student, case.teacher, case.mask, case.allowed)
    with mock.patch.object(chunks, "CACHED_ENTRIES", maps * tokens**2):
        value = case.value(make())
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(value, leaves), gradients(expected, leaves), rtol=1e-11, atol=1e-12)


class LargestTensor(TorchDispatchMode):
    """Notes how many entries the largest tensor has that any operation makes, forward or backward."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it made."""
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            self.entries = max(self.entries, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return made


@pytest.mark.parametrize("name", KINDS)
def test_no_map_is_ever_whole(name: str) -> None:
    """The largest tensor of both passes is a block: at 512 tokens maps were most of a step and of its memory."""
    case = Case(1, rows=3, tokens=32, heads=4)
    case.mask = case.student.bias = case.teacher.bias = None
    case.leaves()
    with mock.patch.object(chunks, "CACHED_ENTRIES", 2 * 32 * 32), LargestTensor() as largest:
        case.value(KINDS[name][0]()).backward()
    block = 4 if name == "sum" else 2  # heads that are added first stay together
    assert largest.entries == block * 32 * 32


def test_each_score_is_computed_once_per_side() -> None:
    """Products of the student: scores and two gradients; of the teacher: scores. What a checkpoint does costs more."""
    case = Case(1, rows=3, tokens=8, heads=4)
    case.mask = None
    case.leaves()
    with mock.patch.object(chunks, "CACHED_ENTRIES", 100), FlopCounterMode(display=False) as forward:
        value = case.value(AttentionMapLoss([(1, 1)]))
    student, teacher = 2 * 3 * 4 * 8 * 8 * 3, 2 * 3 * 4 * 8 * 8 * 4
    assert forward.get_total_flops() == 3 * student + teacher
    with FlopCounterMode(display=False) as backward:
        value.backward()
    assert backward.get_total_flops() == 0
    with torch.no_grad(), FlopCounterMode(display=False) as alone:
        case.value(AttentionMapLoss([(1, 1)]))
    assert alone.get_total_flops() == student + teacher


@pytest.mark.parametrize("name", ["mse", "cross_entropy", "relations"])
def test_padding_costs_nothing(name: str) -> None:
    """A batch is as long as its longest row, and the square of that would be computed for every other row."""
    case = Case(1, rows=2, tokens=8)
    case.student.bias = case.teacher.bias = None
    case.leaves()
    flops = []
    for short in (8, 2):
        case.mask = (torch.arange(8) < torch.tensor([[8], [short]])).long()
        with mock.patch.object(chunks, "CACHED_ENTRIES", 100), FlopCounterMode(display=False) as counter:
            case.value(KINDS[name][0]())
        flops.append(counter.get_total_flops())
    assert flops[1] * 2 * 8**2 == flops[0] * (8**2 + 2**2)


def test_a_comparison_of_ones_own_sees_whole_attentions() -> None:
    """A subclass that overrides `compare` is given what it was always given."""

    class Largest(AttentionMapLoss):
        def compare(self, student: Attention, teacher: Attention, mask: Tensor | None) -> Tensor:
            return (student.scores - teacher.scores).abs().amax()

    case = Case(1, rows=2, tokens=4)
    expected = (case.student.scores - case.teacher.scores).abs().amax()
    assert torch.equal(case.value(Largest([(1, 1)])), expected)


def test_maps_of_different_shapes_are_refused_as_a_whole() -> None:
    """Cut into blocks of one head, a teacher of one head would pass for one that all rows and heads share."""
    case, other = Case(1, rows=2, tokens=4), Case(1, rows=2, tokens=4, heads=1)
    with (
        mock.patch.object(chunks, "CACHED_ENTRIES", 1),
        pytest.raises(ValueError, match=r"\[2, 2, 4, 4\] .*relation_kl"),
    ):
        AttentionMapLoss().compare(case.student, other.teacher, None)
