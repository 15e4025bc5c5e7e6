"""Formulas over a large vocabulary: chunks give what whole logits give, and whole logits are never made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_logits import LargestLogits
from torch import Tensor
from torch.nn import functional as F

from hfdistill import functional
from hfdistill.functional.vocabulary import (
    CHUNK_ELEMENTS,
    OutputHead,
    vocabulary_cross_entropy,
    vocabulary_divergence,
)

DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "forward": partial(functional.soft_target_kl, temperature=2.0),
    "reverse": functional.reverse_kl,
    "jsd": partial(functional.generalized_jsd, beta=0.3),
    "skewed": partial(functional.skewed_reverse_kl, temperature=3.0),
}
TOLERANCES = {torch.float64: (1e-9, 1e-12), torch.float32: (2e-5, 1e-6)}


def heads(
    rows: int, tokens: int, words: int, bias: bool = True, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[OutputHead, OutputHead, Tensor]:
    """A student's head 4 wide, a teacher's 6 wide, and a mask."""
    generator = torch.Generator().manual_seed(seed)

    def head(width: int) -> OutputHead:
        shapes = (rows, tokens, width), (words, width), (words,)
        parts = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
        return OutputHead(*parts[: 2 + bias])

    return head(4), head(6), torch.rand(rows, tokens, generator=generator) > 0.4


def logits(head: OutputHead) -> Tensor:
    """All of them."""
    return F.linear(*head)


def gradients(value: Tensor, head: OutputHead) -> list[Tensor]:
    """Of the student's features, weight and bias."""
    return list(torch.autograd.grad(value, [part for part in head if part is not None]))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 3),
    tokens=st.integers(1, 5),
    words=st.integers(2, 9),
    chunk=st.one_of(st.none(), st.integers(1, 20)),
    bias=st.booleans(),
    masked=st.booleans(),
    divergence=st.sampled_from(sorted(DIVERGENCES)),
    dtype=st.sampled_from(sorted(TOLERANCES, key=str)),
)
def test_chunks_are_a_matter_of_memory_alone(
    rows: int,
    tokens: int,
    words: int,
    chunk: int | None,
    bias: bool,
    masked: bool,
    divergence: str,
    dtype: torch.dtype,
) -> None:
    """Whatever the sizes, value and gradients are those of whole logits, at the tolerances of the golden values."""
    ours, theirs, mask = heads(rows, tokens, words, bias, dtype)
    keep, formula = mask if masked else None, DIVERGENCES[divergence]
    whole = formula(logits(ours), logits(theirs), mask=keep)
    value = vocabulary_divergence(ours, theirs, formula, keep, chunk)
    close: dict[str, Any] = dict(zip(("rtol", "atol"), TOLERANCES[dtype], strict=True))
    torch.testing.assert_close(value, whole, **close)
    torch.testing.assert_close(gradients(value, ours), gradients(whole, ours), **close)


@settings(max_examples=30, deadline=None)
@given(
    words=st.integers(2, 9),
    chunk=st.one_of(st.none(), st.integers(1, 9)),
    smoothing=st.sampled_from([0.0, 0.1]),
    dtype=st.sampled_from(sorted(TOLERANCES, key=str)),
)
def test_labels_in_chunks(words: int, chunk: int | None, smoothing: float, dtype: torch.dtype) -> None:
    """The labels are to weigh against the teacher as they do with whole logits, smoothed or not."""
    head, _, mask = heads(3, 4, words, dtype=dtype)
    labels = torch.randint(0, words, mask.shape, generator=torch.Generator().manual_seed(1)).masked_fill(~mask, -100)
    whole = F.cross_entropy(logits(head).flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
    value = vocabulary_cross_entropy(head, labels, smoothing, chunk)
    close: dict[str, Any] = dict(zip(("rtol", "atol"), TOLERANCES[dtype], strict=True))
    torch.testing.assert_close(value, whole, **close)
    torch.testing.assert_close(gradients(value, head), gradients(whole, head), **close)


@pytest.mark.parametrize("masked", [False, True])
def test_whole_logits_are_never_made(masked: bool) -> None:
    """That is all that the chunks are for: one forgotten tensor of (B, N, V), forward or backward, undoes it."""
    words, chunk = 997, 3
    ours, theirs, mask = heads(4, 6, words)
    with LargestLogits(words) as seen:
        value = vocabulary_divergence(ours, theirs, DIVERGENCES["jsd"], mask if masked else None, chunk)
        (value + vocabulary_cross_entropy(ours, mask.long(), chunk=chunk)).backward()
    assert 0 < seen.rows <= 4 + chunk, "the transposed weight has 4 rows of words"
    assert seen.elements == words * 6, "the teacher's weight is the largest"
    assert seen.elements < 4 * 6 * words


def test_as_many_tokens_as_make_the_chunk() -> None:
    """By default a chunk holds a number of logits, not of tokens: a vocabulary ten times as large has shorter ones."""
    seen = []

    def noted(student: Tensor, teacher: Tensor) -> Tensor:
        seen.append(len(student))
        return functional.reverse_kl(student, teacher)

    words = CHUNK_ELEMENTS // 3
    head = OutputHead(torch.zeros(1, 7, 1), torch.zeros(words, 1))
    with torch.no_grad():
        vocabulary_divergence(head, head, noted)
    assert seen == [3, 3, 1]


def test_masked_tokens_cost_nothing() -> None:
    """In masked language modelling six of seven tokens do not count; and what stands there may be anything."""
    ours, theirs, mask = heads(2, 5, 7)
    broken = OutputHead(ours.features.detach().masked_fill(~mask[..., None], torch.nan).requires_grad_(), *ours[1:])
    seen = []

    def noted(student: Tensor, teacher: Tensor) -> Tensor:
        seen.append(len(student))
        return functional.reverse_kl(student, teacher)

    value = vocabulary_divergence(broken, theirs, noted, mask)
    assert seen == [int(mask.sum())]
    torch.testing.assert_close(value, functional.reverse_kl(logits(ours), logits(theirs), mask=mask))
    (gradient,) = torch.autograd.grad(value, broken.features)
    assert gradient.isfinite().all()
    assert not gradient[~mask].any()


def test_nothing_valid_is_zero_with_a_gradient() -> None:
    """A batch without a single label must neither stop a run nor poison it, and all of DDP's parameters take part."""
    ours, theirs, mask = heads(2, 5, 7)
    for value in (
        vocabulary_divergence(ours, theirs, functional.reverse_kl, torch.zeros_like(mask)),
        vocabulary_cross_entropy(ours, torch.full(mask.shape, -100)),
    ):
        assert value.item() == 0.0
        assert all(not gradient.any() for gradient in gradients(value, ours))


def test_only_what_learns_has_a_gradient() -> None:
    """A frozen head (LoRA) needs no sum of its own size, and a teacher must never learn."""
    ours, theirs, _ = heads(2, 5, 7)
    frozen = OutputHead(ours.features, ours.weight.detach(), None)
    with LargestLogits(7) as seen:
        vocabulary_divergence(frozen, theirs, functional.reverse_kl, chunk=1).backward()
    assert ours.features.grad is not None
    assert all(part is not None and part.grad is None for part in theirs)
    assert seen.elements == 2 * 5 * 6
    frozen = frozen.changed(Tensor.detach)
    assert not vocabulary_divergence(frozen, theirs, functional.reverse_kl).requires_grad
    asked = []

    def noted(student: Tensor, teacher: Tensor) -> Tensor:
        asked.append(student.requires_grad)
        return functional.reverse_kl(student, teacher)

    with torch.no_grad():
        assert not vocabulary_divergence(ours, theirs, noted).requires_grad
    assert asked == [False], "evaluation must not work out gradients"


def test_a_second_derivative_is_refused() -> None:
    """The gradients are constants of the graph: to differentiate them again would give 0 without a word."""
    ours, theirs, _ = heads(2, 5, 7)
    value = vocabulary_divergence(ours, theirs, functional.reverse_kl)
    weight = torch.ones((), requires_grad=True)
    (gradient,) = torch.autograd.grad(weight * value, ours.features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("how", ["autocast", "half"])
def test_products_are_half_and_divergences_float32(how: str) -> None:
    """As with whole logits: the head runs in half precision, softmax and its sums over the vocabulary do not."""
    ours, theirs, mask = heads(3, 6, 50, dtype=torch.float32)
    kinds = set()

    def noted(student: Tensor, teacher: Tensor) -> Tensor:
        kinds.update({student.dtype, teacher.dtype})
        return functional.soft_target_kl(student, teacher)

    if how == "half":
        ours, theirs = (
            side.changed(lambda part: part.detach().bfloat16().requires_grad_()) for side in (ours, theirs)
        )
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        whole = functional.soft_target_kl(logits(ours), logits(theirs), mask=mask)
        value = vocabulary_divergence(ours, theirs, noted, mask, chunk=4)
    assert kinds == {torch.bfloat16}
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, whole, rtol=1e-2, atol=0.0)
    for one, other in zip(gradients(value, ours), gradients(whole, ours), strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() < 0.02 * other.norm()


def test_sums_over_chunks_do_not_round_to_half() -> None:
    """A weight's gradient in bfloat16 that is summed chunk by chunk would stop growing after 256 of them."""
    count = 2000
    head = OutputHead(torch.ones(1, count, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16))
    head.weight.requires_grad_()
    vocabulary_cross_entropy(head, torch.zeros(1, count, dtype=torch.long), chunk=1).backward()
    assert head.weight.grad is not None
    torch.testing.assert_close(head.weight.grad.float(), torch.tensor([[-0.5], [0.5]]), rtol=1e-2, atol=0.0)


def test_what_does_not_fit_is_refused() -> None:
    """Two vocabularies, or rows of another batch, would be compared word by word all the same."""
    ours, theirs, mask = heads(2, 5, 7)
    other = heads(2, 5, 8)[1]
    with pytest.raises(ValueError, match=r"heads over one vocabulary, got 7 \(student\) and 8 \(teacher\)"):
        vocabulary_divergence(ours, other, functional.reverse_kl)
    with pytest.raises(ValueError, match="expected rows"):
        vocabulary_divergence(ours, heads(2, 4, 7)[1], functional.reverse_kl, mask)
    with pytest.raises(ValueError, match="expected rows"):
        vocabulary_cross_entropy(ours, mask[:, 1:].long())
    with pytest.raises(ValueError, match="chunk >= 1, got 0"):
        vocabulary_divergence(ours, theirs, functional.reverse_kl, chunk=0)
