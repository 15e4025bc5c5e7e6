"""A recorded teacher must show what the live one shows, in batches of other rows and other padding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loss_variants import VARIANTS
from torch import Tensor
from toy_models import FAMILIES, PAD, Inputs, toy_swin
from toy_representations import STUDENT, TEACHER
from training_toys import trainer_of

from hfdistill import Attention, FrozenTeacher, InBatchContrastLoss, Needs, Objective, TaskLoss, preset
from hfdistill.equivalence.recorded_teacher import RecordedTeacher
from hfdistill.equivalence.relations import gathering, relates_rows, relating, remembering
from hfdistill.equivalence.short_runs import NotComparableError

ROWS = 4
FACTORIES = {**FAMILIES, "swin": (toy_swin, FAMILIES["vit"][1])}


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


def seen(attention: Attention, mask: Tensor | None) -> list[Tensor]:
    """What losses see of an attention, where there are real tokens."""
    shown = attention.probabilities, attention.scores if attention.query is not None else attention.probabilities
    if mask is None:
        return list(shown)
    pairs = (mask[:, None, :, None] * mask[:, None, None, :]).bool()  # (B, 1, N, N)
    return [tensor.masked_fill(~pairs, 0.0) for tensor in shown]


@pytest.mark.parametrize("family", FACTORIES)
def test_what_was_recorded_is_what_the_live_teacher_shows(family: str) -> None:
    """A key, a token or a window put into the wrong place would be called a fault of the user's teacher."""
    make, make_inputs = FACTORIES[family]
    model = make(layers=2) if family != "swin" else make()
    live = FrozenTeacher(model)
    anatomy = live.anatomy
    layers = range(1, anatomy.depth + 1)
    projections = frozenset(layers) if anatomy.attention == "interface" else frozenset()
    needs = Needs(True, frozenset({0, *layers}), projections, frozenset(layers) if projections else frozenset())
    inputs = make_inputs(rows=ROWS)
    recorded = RecordedTeacher(live)
    for part in parts(inputs):
        recorded.represent({**part, "labels": torch.zeros(2)}, needs)
    recorded.replaying = True
    inputs = turned(inputs)
    ours, theirs = recorded.represent(inputs, needs), live.represent(inputs, needs)
    mask = inputs.get("attention_mask")
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
    assert ours.hidden_states.keys() == theirs.hidden_states.keys()
    for layer, state in theirs.hidden_states.items():
        real = torch.ones_like(state) if mask is None else mask[..., None].expand_as(state)
        torch.testing.assert_close(ours.hidden_states[layer] * real, state * real, rtol=1e-4, atol=1e-5)
    assert ours.attentions.keys() == theirs.attentions.keys()
    for layer, attention in theirs.attentions.items():
        for one, other in zip(seen(ours.attentions[layer], mask), seen(attention, mask), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_padding_may_stand_on_either_side() -> None:
    """Tokenizers of decoders pad on the left; what was shown of a token must stand where the token stands."""
    make, make_inputs = FACTORIES["llama"]  # goes by distances between tokens, so that where a row begins is the same
    live = FrozenTeacher(make())
    recorded, needs = RecordedTeacher(live), Needs(hidden_states=frozenset({0, 2}), projections=frozenset({1}))
    inputs = make_inputs(rows=ROWS)
    recorded.represent(inputs, needs)
    recorded.replaying = True
    inputs = turned(inputs, left=2)
    ours, theirs, mask = recorded.represent(inputs, needs), live.represent(inputs, needs), inputs["attention_mask"]
    for layer, state in theirs.hidden_states.items():
        torch.testing.assert_close(ours.hidden_states[layer] * mask[..., None], state * mask[..., None])
    for one, other in zip(seen(ours.attentions[1], mask), seen(theirs.attentions[1], mask), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_row_that_was_not_seen_is_told() -> None:
    """Another row's answer would be worse than none."""
    make, make_inputs = FACTORIES["bert"]
    recorded, needs = RecordedTeacher(FrozenTeacher(make())), Needs(logits=True)
    recorded.represent(make_inputs(), needs)
    recorded.replaying = True
    with pytest.raises(NotComparableError, match="3 of 3 rows"):
        recorded.represent(make_inputs(seed=1), needs)
    with pytest.raises(NotComparableError, match="3 of 3 rows"):
        recorded.represent(make_inputs(), Needs(hidden_states=frozenset({0})))


def test_padding_without_a_mask_is_told() -> None:
    """Nobody knows which tokens are real, so the same row looks like another one."""
    make, make_inputs = FACTORIES["bert"]
    recorded, needs = RecordedTeacher(FrozenTeacher(make())), Needs(logits=True)
    ids = {"input_ids": make_inputs(rows=ROWS)["input_ids"]}
    recorded.represent(ids, needs)
    recorded.replaying = True
    with pytest.raises(NotComparableError, match="without an attention_mask"):
        recorded.represent(turned(ids), needs)


# Not the mean over rows for other reasons than what shares a batch, or learning in another way than by its value.
OTHERWISE = {"lightweight, drawn": "draws for each row", "learned transfer": "its meta networks see a micro-batch"}


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_that_relate_rows_are_known(name: str) -> None:
    """One that is not known is called broken; one that is known wrongly is never looked at."""
    variant = VARIANTS[name]
    loss = variant.make()
    loss.bind(*(replace(side, head=variant.head, classes=variant.classes) for side in (STUDENT, TEACHER)))
    assert relates_rows(loss) == (not variant.additive) or name in OTHERWISE


def test_terms_are_named(tmp_path: Path) -> None:
    """What is set aside is said by the names that the user gave."""
    objective = trainer_of(tmp_path, preset("crd")).objective
    assert relating(objective) == remembering(objective) == {"crd"}
    assert gathering(objective) == frozenset()
    contrast = Objective(task=TaskLoss(), contrast=InBatchContrastLoss(gather=True))
    assert relating(contrast) == gathering(contrast) == {"contrast"}
    assert remembering(contrast) == frozenset()
