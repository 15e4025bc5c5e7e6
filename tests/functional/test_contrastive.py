"""Contrast: what its formulas promise, written out another way."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from hfdistill.functional.contrastive import (
    cos_nce,
    cos_nce_in_batch,
    in_batch_contrast,
    log_constant,
    memory_similarity,
    noise_contrast,
    relation_similarity,
    remembered,
)

PROPERTY = settings(deadline=None, max_examples=25, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
BATCHES, NEGATIVES = st.integers(1, 5), st.integers(0, 6)
ROWS, WIDTH = 11, 4
GARBAGE = (float("nan"), float("inf"), -1e30)


def remembering(seed: int, batch: int, negatives: int, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    """Return vectors (B, D) with a gradient, a memory (rows, D), both of length 1, and candidates (B, K + 1)."""
    generator = torch.Generator().manual_seed(seed)
    vectors = normalize(torch.randn(batch, WIDTH, generator=generator, dtype=torch.float64), dim=-1)
    memory = normalize(torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64), dim=-1)
    return vectors.requires_grad_(), memory, torch.randint(rows, (batch, negatives + 1), generator=generator)


def two_sides(seed: int, batch: int) -> tuple[Tensor, Tensor]:
    """Return a student's vectors (B, D), with a gradient, and a teacher's."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, batch, WIDTH, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


def written_out(vectors: Tensor, memory: Tensor, index: Tensor, temperature: float) -> Tensor:
    """Return the similarities of relations with every difference made, (B, B, K + 1, D)."""
    anchors = memory[index[:, 0]]
    own = normalize(vectors[:, None] - anchors + 1e-6, dim=-1)
    theirs = normalize(memory[index][:, None] - anchors[None, :, None] + 1e-6, dim=-1)
    return torch.einsum("ijd,ijkd->ijk", own, theirs) / temperature


SIMILARITIES = pytest.mark.parametrize("similarity", [memory_similarity, relation_similarity])


@pytest.mark.parametrize(("similarity", "tolerance"), [(memory_similarity, 1e-7), (relation_similarity, 1e-3)])
@PROPERTY
@given(seed=SEEDS, batch=BATCHES, negatives=NEGATIVES)
def test_similarities_ignore_a_common_rotation(
    similarity: Callable[..., Tensor], tolerance: float, seed: int, batch: int, negatives: int
) -> None:
    """Vectors and memory share a space without axes: only angles between them may count."""
    vectors, memory, index = remembering(seed, batch, negatives)
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64))[0]
    turned = similarity(vectors @ rotation, memory @ rotation, index)
    # the offset of 1e-6 along (1, ..., 1) does not turn with the rest, and is all there is where candidate is anchor
    counts = torch.ones_like(turned, dtype=torch.bool)
    if turned.ndim == 3:
        counts = (index[:, None] != index[:, :1]).expand_as(turned)
    expected = similarity(vectors, memory, index)[counts]
    torch.testing.assert_close(turned[counts], expected, rtol=tolerance, atol=tolerance)


@PROPERTY
@given(seed=SEEDS, batch=BATCHES, negatives=NEGATIVES, shift=st.floats(-3, 3))
def test_relations_ignore_a_common_translation(seed: int, batch: int, negatives: int, shift: float) -> None:
    """A relation is a difference: where the origin lies must not matter."""
    vectors, memory, index = remembering(seed, batch, negatives)
    moved = relation_similarity(vectors + shift, memory + shift, index)
    torch.testing.assert_close(moved, relation_similarity(vectors, memory, index), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
@PROPERTY
@given(seed=SEEDS, batch=BATCHES, negatives=NEGATIVES)
def test_relations_are_those_of_the_differences(
    dtype: torch.dtype, tolerance: float, seed: int, batch: int, negatives: int
) -> None:
    """They are computed from products: what these lose to rounding would be the loss of near neighbours."""
    vectors, memory, index = remembering(seed, batch, negatives + 1)
    memory[1] = normalize(memory[0] + 5e-3 * memory[1], dim=-1)  # two rows that are nearly the same
    index[0, 0], index[:, 1] = 0, 1
    expected = written_out(vectors, memory, index, 0.5)
    found = relation_similarity(vectors.to(dtype), memory.to(dtype), index, 0.5)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_relations_need_no_differences_of_every_candidate() -> None:
    """At 64 rows, 500 candidates and 128 numbers these would be a gigabyte of copies, forward and backward."""
    largest = []

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            largest.extend(part.numel() for part in (result,) if isinstance(part, Tensor))
            return result

    vectors, memory = torch.randn(8, 32, requires_grad=True), torch.randn(50, 32)
    with Watching():
        relation_similarity(vectors, memory, torch.randint(50, (8, 21))).sum().backward()
    assert max(largest) <= 8 * 21 * 32 < 8 * 8 * 21 * 32


@PROPERTY
@given(seed=SEEDS, batch=BATCHES, negatives=NEGATIVES)
def test_both_ways_to_the_candidates_agree(seed: int, batch: int, negatives: int) -> None:
    """A long memory is read at the candidates only, a short one multiplied whole: one formula."""
    vectors, memory, index = remembering(seed, batch, negatives)
    long = torch.cat([memory, torch.zeros(100, WIDTH, dtype=torch.float64)])
    expected = torch.einsum("bd,bkd->bk", vectors, memory[index]) / 0.2
    weights = torch.randn(expected.shape, dtype=torch.float64)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), vectors, retain_graph=True)
    for bank in (memory, long):
        found = memory_similarity(vectors, bank, index, 0.2)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), vectors)[0], wanted)


@SIMILARITIES
@pytest.mark.parametrize("rows", [ROWS, 500])
def test_the_memory_may_change_before_the_backward_pass(similarity: Callable[..., Tensor], rows: int) -> None:
    """It takes up the batch in the same step: a gradient of what it holds afterwards would be another loss's."""
    vectors, memory, index = remembering(0, 3, 2, rows)
    (expected,) = torch.autograd.grad(similarity(vectors, memory, index).sum(), vectors)
    similarities = similarity(vectors, memory, index)
    memory.fill_(7.0)
    torch.testing.assert_close(torch.autograd.grad(similarities.sum(), vectors)[0], expected)


@SIMILARITIES
@pytest.mark.parametrize("rows", [ROWS, 500])
def test_no_gradient_into_a_memory(similarity: Callable[..., Tensor], rows: int) -> None:
    """What is remembered is only written, never learnt."""
    vectors, memory, index = remembering(1, 3, 2, rows)
    memory.requires_grad_()
    value = noise_contrast(similarity(vectors, memory, index), 0.0, rows)
    to_vectors, to_memory = torch.autograd.grad(value, [vectors, memory], allow_unused=True)
    assert to_vectors.any()
    assert to_memory is None
    assert torch.autograd.gradcheck(lambda side: similarity(side, memory, index, 1.0), vectors)


def test_noise_contrast_by_hand() -> None:
    """Numbers that can be checked on paper: c = 1/2, p = 1 and 2, up to the 1e-7 of the formula."""
    similarities = torch.tensor([[0.0, math.log(2)]], dtype=torch.float64)
    value = noise_contrast(similarities, 0.0, rows=2)
    assert value.item() == pytest.approx(math.log(1.5) + math.log(5), abs=1e-6)
    assert noise_contrast(similarities + 3, 3.0, rows=2).item() == pytest.approx(value.item(), rel=1e-12)


@PROPERTY
@given(seed=SEEDS, batch=BATCHES, negatives=st.integers(1, 6))
def test_gradient_of_noise_contrast_in_closed_form(seed: int, batch: int, negatives: int) -> None:
    """-q/B for the positive and (1 - q)/B for a negative, q the belief that it is noise: else it estimates nothing."""
    generator = torch.Generator().manual_seed(seed)
    similarities = torch.randn(batch, negatives + 1, generator=generator, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(noise_contrast(similarities, 0.3, ROWS), similarities)
    noise = negatives / ROWS + 1e-7
    belief = noise / ((similarities - 0.3).exp() + noise)
    belief[:, 1:] -= 1
    torch.testing.assert_close(gradient, -belief.detach() / batch)


@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_noise_contrast_stays_finite(size: float) -> None:
    """exp(1e4) is no number; the loss of it is."""
    similarities = torch.tensor([[size, -size], [size, size]], requires_grad=True)
    value = noise_contrast(similarities, 0.0, rows=2)
    value.backward()
    assert value.isfinite()
    assert similarities.grad is not None
    assert similarities.grad.isfinite().all()


@PROPERTY
@given(seed=SEEDS, kept=st.lists(st.booleans(), min_size=4, max_size=4), garbage=st.sampled_from(GARBAGE))
def test_masked_rows_never_count(seed: int, kept: list[bool], garbage: float) -> None:
    """A row of padding holds whatever a kernel left there, and may neither be told nor set the constant."""
    similarities = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = torch.tensor(kept)
    dirty = similarities.masked_fill(~mask[:, None], garbage).requires_grad_()
    constant = log_constant(dirty, ROWS, mask)
    value = noise_contrast(dirty, constant.nan_to_num(neginf=0.0), ROWS, mask)
    (gradient,) = torch.autograd.grad(value, dirty)
    assert not gradient[~mask].any()
    if not mask.any():
        assert (value, constant) == (0, -torch.inf)
        return
    rest = similarities[mask]
    torch.testing.assert_close(constant, log_constant(rest, ROWS))
    torch.testing.assert_close(value, noise_contrast(rest, constant, ROWS))


@PROPERTY
@given(seed=SEEDS, batch=BATCHES, negatives=NEGATIVES)
def test_the_constant_makes_probabilities(seed: int, batch: int, negatives: int) -> None:
    """With it a candidate drawn at random has the mean probability 1 / rows."""
    vectors, memory, index = remembering(seed, batch, negatives)
    similarities = memory_similarity(vectors, memory, index)
    constant = log_constant(similarities, ROWS)
    assert not constant.requires_grad
    assert (similarities - constant).exp().mean().item() == pytest.approx(1 / ROWS)


@PROPERTY
@given(seed=SEEDS, batch=BATCHES, momentum=st.floats(0, 0.99))
def test_what_is_remembered_has_length_1(seed: int, batch: int, momentum: float) -> None:
    """Else similarities would be no cosines, and grow with the age of a row."""
    vectors, memory, _ = remembering(seed, batch, 0, rows=batch)
    rows = remembered(3 * memory, vectors, momentum)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(batch, dtype=torch.float64))
    assert not rows.requires_grad
    mixed = 3 * momentum * memory + (1 - momentum) * vectors.detach()
    torch.testing.assert_close(rows, normalize(mixed, dim=-1))


@PROPERTY
@given(seed=SEEDS, batch=BATCHES, scale=st.floats(1e-3, 1e3))
def test_contrast_in_the_batch_is_a_classification(seed: int, batch: int, scale: float) -> None:
    """Each row is the class of its own: the cross-entropy of cosines over T, free of lengths."""
    student, teacher = two_sides(seed, batch)
    cosines = torch.nn.functional.cosine_similarity(student[:, None], teacher[None], dim=-1)
    expected = torch.nn.functional.cross_entropy(cosines / 0.3, torch.arange(batch))
    torch.testing.assert_close(in_batch_contrast(scale * student, teacher / scale, 0.3), expected)


def test_contrast_in_the_batch_by_hand() -> None:
    """One row alone has nothing to be told from; rows that are all alike can only be guessed."""
    student, teacher = two_sides(0, 1)
    assert in_batch_contrast(student, teacher) == 0
    same = torch.ones(4, WIDTH)
    assert in_batch_contrast(same, same).item() == pytest.approx(math.log(4))
    identity = torch.eye(2, dtype=torch.float64)
    assert in_batch_contrast(identity, identity, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_the_teachers_side_may_be_learnt() -> None:
    """Its embedding layer is trained: a detached teacher would leave it as random as it began."""
    student, teacher = two_sides(0, 3)
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda *sides: in_batch_contrast(*sides, 0.5), (student, teacher))
    assert torch.autograd.grad(in_batch_contrast(student, teacher), teacher)[0].any()


@PROPERTY
@given(seed=SEEDS, batch=BATCHES)
def test_angles_in_the_batch_are_those_of_the_other_rows(seed: int, batch: int) -> None:
    """One product in place of a copy of the others for each row: the same formula and gradient."""
    student, teacher = two_sides(seed, batch)
    others = torch.stack([torch.cat([teacher[:row], teacher[row + 1 :]]) for row in range(batch)])  # (B, B - 1, D)
    expected, value = cos_nce(student, teacher, others), cos_nce_in_batch(student, teacher)
    torch.testing.assert_close(value, expected)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (value, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("function", [cos_nce_in_batch, lambda s, t, mask: in_batch_contrast(s, t, 0.1, mask)])
@PROPERTY
@given(seed=SEEDS, kept=st.lists(st.booleans(), min_size=4, max_size=4), garbage=st.sampled_from(GARBAGE))
def test_a_masked_row_is_neither_taught_nor_a_negative(
    function: Callable[..., Tensor], seed: int, kept: list[bool], garbage: float
) -> None:
    """The loss must be that of a batch without it, whatever it holds, and 0 without any row."""
    student, teacher = two_sides(seed, 4)
    mask = torch.tensor(kept)
    dirty = student.detach().masked_fill(~mask[:, None], garbage).requires_grad_()
    value = function(dirty, teacher.masked_fill(~mask[:, None], garbage), mask)
    (gradient,) = torch.autograd.grad(value, dirty)
    assert not gradient[~mask].any()
    expected = function(student[mask], teacher[mask], mask[mask]) if mask.any() else torch.zeros_like(value)
    torch.testing.assert_close(value, expected)


HALVES = {
    "cos_nce_in_batch": lambda s, t: cos_nce_in_batch(s, t),
    "in_batch_contrast": lambda s, t: in_batch_contrast(s, t),
    "memory": lambda s, t: noise_contrast(memory_similarity(s, t, torch.tensor([[0, 1], [1, 2], [2, 0]])), 0.0, 3),
    "relation": lambda s, t: noise_contrast(relation_similarity(s, t, torch.tensor([[0, 1], [1, 2], [2, 0]])), 0.0, 3),
    "remembered": lambda s, t: remembered(t, s).sum(),
}


@pytest.mark.parametrize("name", HALVES)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    """At T = 0.05 a cosine rounded to eight bits is off by a tenth of its exponent."""
    student, teacher = (side.detach().bfloat16() for side in two_sides(0, 3))
    expected = HALVES[name](student.float(), teacher.float())
    with torch.autocast("cpu", torch.bfloat16):
        within, of_float = HALVES[name](student, teacher), HALVES[name](student.float(), teacher.float())
    assert expected.dtype == torch.float32
    for value in (HALVES[name](student, teacher), within, of_float):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


def test_a_row_that_is_its_own_anchor_has_finite_derivatives() -> None:
    """Its relation has length 0 but for the 1e-6: a quotient of nothing by nothing, once and twice differentiated."""
    memory, index = torch.eye(WIDTH, dtype=torch.float64), torch.tensor([[0, 1], [1, 0]])
    vectors = memory[:2].clone().requires_grad_()
    value = noise_contrast(relation_similarity(vectors, memory, index), 0.0, 4)
    (gradient,) = torch.autograd.grad(value, vectors, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), vectors)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert second.isfinite().all()


SIDES = torch.ones(2, WIDTH)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: in_batch_contrast(SIDES, SIDES, 0.0), "temperature above 0, got 0.0"),
        (lambda: in_batch_contrast(SIDES, SIDES[:1]), "one shape on both sides"),
        (lambda: in_batch_contrast(SIDES, SIDES, mask=torch.ones(3)), r"rows \[3\] as in the mask"),
        (lambda: cos_nce_in_batch(SIDES, SIDES[:, :1]), "one shape on both sides"),
        (lambda: memory_similarity(SIDES, SIDES, torch.zeros(2, 2).long(), -1.0), "temperature above 0, got -1.0"),
        (lambda: relation_similarity(SIDES, SIDES, torch.zeros(2, 2).long(), 0.0), "temperature above 0, got 0.0"),
        (lambda: noise_contrast(SIDES, 0.0, 3, torch.ones(3)), r"rows \[3\] as in the mask"),
        (lambda: remembered(SIDES, SIDES[:, :2]), "one shape on both sides"),
    ],
)
def test_errors_say_what_is_wrong(call: Callable[[], Tensor], message: str) -> None:
    """Torch would broadcast most of these without a word, into a loss that trains on something else."""
    with pytest.raises(ValueError, match=message):
        call()
