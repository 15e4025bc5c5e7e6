"""What was kept of a row says the same to every loss as the live teacher, in whatever batch it comes back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from loss_variants import VARIANTS
from losses.test_contract import made, value_of
from torch import Tensor
from toy_models import FAMILIES, PAD, Inputs, toy_swin
from toy_representations import TEACHER, Scene

from hfdistill import Attention, AttentionMapLoss, FrozenTeacher, Needs, Representations
from hfdistill.functional.divergences import top_k_kl
from hfdistill.teacher_cache.entries import Entries

ROWS = 4
FACTORIES = {**FAMILIES, "swin": (toy_swin, FAMILIES["vit"][1])}
READS_THE_HEAD = [name for name, variant in VARIANTS.items() if variant.needs[1].output_head]


def kept_and_back(
    entries: Entries, shown: Representations, real: Tensor | None, rows: int, now: Tensor | None, order: Sequence[int]
) -> Representations:
    """What was shown of a batch, kept row by row, as a batch of these rows that is padded as `now` says."""
    cut = entries.rows(shown, real, rows)
    # a row must stand for itself: what it shares with its batch's memory would be written to disk with it
    copies = [{name: tensor.clone() for name, tensor in row.items()} for row in cut]
    return entries.representations(entries.batch([copies[at] for at in order], now))


def parts(inputs: Inputs) -> list[Inputs]:
    """The rows two by two, each pair without the padding that both have."""
    found = []
    for rows in (slice(0, 2), slice(2, 4)):
        part = {name: value[rows] for name, value in inputs.items()}
        if "attention_mask" in part:
            longest = int(part["attention_mask"].sum(dim=1).max())
            part = {name: value[:, :longest] for name, value in part.items()}
        found.append(part)
    return found


def turned(inputs: Inputs, left: int = 0) -> Inputs:
    """The rows in another order, and three more places of padding, `left` of them before the row."""
    order = torch.tensor([3, 0, 2, 1])
    fillers = {"input_ids": PAD, "attention_mask": 0}
    return {
        name: torch.nn.functional.pad(value[order], (left, 3 - left), value=fillers[name])
        if name in fillers
        else value[order]
        for name, value in inputs.items()
    }


def mask_of(inputs: Inputs) -> Tensor | None:
    """(B, N) bool, or None for images."""
    return inputs["attention_mask"].bool() if "attention_mask" in inputs else None


def recorded(teacher: FrozenTeacher, entries: Entries, needs: Needs, inputs: Inputs, now: Inputs) -> Representations:
    """What the teacher showed in two smaller batches, as the batch `now` of the same rows in another order."""
    rows = []
    for part in parts(inputs):
        rows += entries.rows(teacher.represent(part, needs), mask_of(part), 2)
    return entries.representations(entries.batch([rows[at] for at in (3, 0, 2, 1)], mask_of(now)))


def seen(attention: Attention, mask: Tensor | None) -> list[Tensor]:
    """What losses see of an attention, where there are real tokens."""
    raw = attention.query is not None or attention.given_scores is not None
    shown = attention.probabilities, attention.scores if raw else attention.probabilities
    if mask is None:
        return list(shown)
    pairs = mask[:, None, :, None] & mask[:, None, None, :]  # (B, 1, N, N)
    return [tensor.masked_fill(~pairs, 0.0) for tensor in shown]


# ---- losses ----


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in READS_THE_HEAD])
def test_every_loss_learns_the_same_from_what_was_kept(name: str, extra: int) -> None:
    """A loss that reads more than its cached_needs, or padding, would train another student from the cache."""
    loss, live = made(name)
    assert live.batch.mask is not None
    entries = Entries(loss.cached_needs(), replace(TEACHER, head=VARIANTS[name].head, classes=VARIANTS[name].classes))
    now: Scene = live.padded(extra, 0.0, 0.0) if extra else live
    assert now.batch.mask is not None
    back = kept_and_back(entries, live.teacher, live.batch.mask.bool(), 3, now.batch.mask.bool(), range(3))
    torch.testing.assert_close(value_of(loss, replace(now, teacher=back)), value_of(loss, live), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", READS_THE_HEAD)
def test_the_teachers_output_head_is_not_kept(name: str) -> None:
    """Half of what such a loss needs is weights, which no row holds: it must be said, not found out in training."""
    with pytest.raises(ValueError, match="Use TopKLoss"):
        Entries(made(name)[0].cached_needs(), TEACHER)


def test_a_loss_that_looks_at_padding_is_refused() -> None:
    """Its value depends on what the teacher shows of padding, of which nothing is kept."""
    loss = AttentionMapLoss(reduction="tinybert")
    with pytest.raises(ValueError, match="reduction='mean'"):
        loss.cached_needs()


# ---- families ----


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("family", FACTORIES)
def test_what_was_kept_is_what_the_live_teacher_shows(family: str, scores: bool) -> None:
    """A token, a window or a mask put into the wrong place would be learnt from as if it were right."""
    make, make_inputs = FACTORIES[family]
    teacher = FrozenTeacher(make(layers=2) if family != "swin" else make())
    anatomy = teacher.anatomy
    layers = frozenset(range(1, anatomy.depth + 1))
    raw = layers if anatomy.attention == "interface" else frozenset()
    needs = Needs(True, frozenset({0, *layers}), raw, layers if raw else frozenset())
    kept = replace(needs, projections=frozenset(), attention_scores=raw) if scores else needs
    entries, inputs = Entries(kept, anatomy), make_inputs(rows=ROWS)
    now = turned(inputs)
    ours, theirs, real = recorded(teacher, entries, needs, inputs, now), teacher.represent(now, needs), mask_of(now)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
    assert ours.hidden_states.keys() == theirs.hidden_states.keys()
    for layer, state in theirs.hidden_states.items():
        where = torch.ones_like(state) if real is None else real[..., None].expand_as(state)
        torch.testing.assert_close(ours.hidden_states[layer] * where, state * where, rtol=1e-4, atol=1e-5)
    assert ours.attentions.keys() == theirs.attentions.keys()
    for layer, attention in theirs.attentions.items():
        for one, other in zip(seen(ours.attentions[layer], real), seen(attention, real), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_probabilities_of_a_family_that_shows_no_more() -> None:
    """DeBERTa's distributions are kept as they are: there is nothing to make them of again."""
    make, make_inputs = FAMILIES["deberta-v2"]
    teacher, needs = FrozenTeacher(make(attn_implementation="eager")), Needs(attention_probabilities=frozenset({2}))
    inputs = make_inputs(rows=ROWS)
    now = turned(inputs)
    ours = recorded(teacher, Entries(needs, teacher.anatomy), needs, inputs, now).attentions[2]
    theirs = teacher.represent(now, needs).attentions[2]
    for one, other in zip(seen(ours, mask_of(now)), seen(theirs, mask_of(now)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_padding_may_stand_on_either_side() -> None:
    """Tokenizers of decoders pad on the left; what was shown of a token must stand where the token stands."""
    make, make_inputs = FAMILIES["llama"]  # goes by distances between tokens, so that where a row begins is the same
    teacher, needs = FrozenTeacher(make()), Needs(hidden_states=frozenset({0, 2}), projections=frozenset({1}))
    inputs = make_inputs(rows=ROWS)
    now = turned(inputs, left=2)
    real = now["attention_mask"].bool()
    ours = recorded(teacher, Entries(needs, teacher.anatomy), needs, inputs, now)
    theirs = teacher.represent(now, needs)
    for layer, state in theirs.hidden_states.items():
        torch.testing.assert_close(ours.hidden_states[layer] * real[..., None], state * real[..., None])
    for one, other in zip(seen(ours.attentions[1], real), seen(theirs.attentions[1], real), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_holes_in_a_row_stay_where_they_are() -> None:
    """A mask may leave out tokens in the middle of a row; those after it must not move up."""
    state, real = torch.randn(2, 5, 3), torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    entries = Entries(Needs(hidden_states=frozenset({1})), TEACHER)
    back = kept_and_back(entries, Representations(hidden_states={1: state}), real, 2, real, (0, 1))
    torch.testing.assert_close(back.hidden_states[1], state * real[..., None], rtol=0.0, atol=0.0)


def test_masks_that_allow_everything_take_no_room() -> None:
    """An encoder's mask is its padding, which the batch says itself; n² flags of each layer and row would be noise."""
    make, make_inputs = FAMILIES["bert"]
    teacher, needs = FrozenTeacher(make()), Needs(projections=frozenset({1}))
    inputs = make_inputs(rows=ROWS)
    rows = Entries(needs, teacher.anatomy).rows(teacher.represent(inputs, needs), mask_of(inputs), ROWS)
    assert all(row["projections/1/allowed"].numel() == row["projections/1/bias"].numel() == 0 for row in rows)
    assert rows[1]["projections/1/query"].shape[2] == int(inputs["attention_mask"][1].sum()), "padding was kept"


def test_what_was_not_shown_is_told() -> None:
    """A row without all that a run learns from would be a hit that fails in the next epoch."""
    entries = Entries(Needs(logits=True, hidden_states=frozenset({2})), TEACHER)
    with pytest.raises(ValueError, match="hidden_states/2"):
        entries.rows(Representations(logits=torch.zeros(2, 3)), None, 2)


def test_places_that_are_no_tokens_are_told() -> None:
    """A family that pools its tokens on the way has places of which the mask says nothing."""
    entries, real = Entries(Needs(hidden_states=frozenset({2})), TEACHER), torch.ones(2, 4).bool()
    with pytest.raises(ValueError, match="2 places for 4 tokens"):
        entries.rows(Representations(hidden_states={2: torch.zeros(2, 2, 3)}), real, 2)


# ---- the likely classes ----


@pytest.mark.parametrize("missing", ["tail", "zero"])
@pytest.mark.parametrize("spread", [0.0, 1e-4, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_top_classes_give_the_loss_of_the_whole_logits(missing: str, spread: float, dtype: torch.dtype) -> None:
    """What is left of 50,000 classes must be as good as all of them, however flat they are and however rounded."""
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 6, 40), torch.randn(4, 6, 40) * spread + torch.linspace(0, 1e-3, 40)
    entries = Entries(Needs(top_classes=frozenset({(8, 2.0)})), TEACHER)
    rows = entries.rows(Representations(logits=teacher), None, 4)
    rounded = [{name: t.to(dtype) if t.is_floating_point() else t for name, t in row.items()} for row in rows]
    back = entries.representations(entries.batch(rounded, None)).logits
    assert back is not None
    assert back.shape == teacher.shape
    chosen = [set(row.topk(8).indices.tolist()) for row in teacher.flatten(0, 1)]
    assert [set(row.topk(8).indices.tolist()) for row in back.flatten(0, 1)] == chosen
    live, cached = (top_k_kl(student, side, 8, 2.0, missing=missing) for side in (teacher, back))
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    torch.testing.assert_close(cached, live, rtol=tolerance, atol=tolerance)


def test_more_classes_than_there_are_is_all_of_them() -> None:
    """k=128 is TopKLoss's default, also for heads of two classes."""
    teacher = torch.tensor([[1.0, -math.inf, 0.5]])
    entries = Entries(Needs(top_classes=frozenset({(128, 1.0)})), TEACHER)
    back = kept_and_back(entries, Representations(logits=teacher), None, 1, None, (0,)).logits
    assert back is not None
    torch.testing.assert_close(back.softmax(-1), teacher.softmax(-1))


def test_several_temperatures_keep_the_logits() -> None:
    """The mass of all others at one temperature says nothing about that at another."""
    entries = Entries(Needs(top_classes=frozenset({(8, 1.0), (8, 2.0)})), TEACHER)
    assert entries.kinds == ("logits",)
    assert Entries(Needs(top_classes=frozenset({(8, 2.0), (4, 2.0)})), TEACHER).kinds[0] == "top_classes/8/2.0/logs"
