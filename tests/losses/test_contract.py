"""The contract that every loss of the catalogue keeps, whatever it compares (hfdistill/losses/base.py says it).

Each entry of `LOSSES` is one way to use a class; a class without an entry fails a test. What a loss computes is
tested in its own file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from toy_representations import LENGTHS, ROWS, STUDENT, TEACHER, TOKENS, Scene, leaves, rebuilt, toy_anatomy, toy_scene

from hfdistill.anatomy import Anatomy
from hfdistill.losses import (
    CATALOGUE,
    AttentionMapLoss,
    AttentionRelationLoss,
    ContrastiveRepresentationLoss,
    DistillationLoss,
    HiddenStateLoss,
    PatienceLoss,
    SoftTargetLoss,
    TaskLoss,
)
from hfdistill.losses.relation.attention_relation import MINILM
from hfdistill.objective import Objective
from hfdistill.representations import Needs, Representations

PAIRS = ((1, 2), (2, 4))
LOSSES: dict[str, Callable[[], DistillationLoss]] = {
    "task": TaskLoss,
    "task, smoothed": lambda: TaskLoss(label_smoothing=0.1),
    "task, tokens": TaskLoss,
    "soft kl": lambda: SoftTargetLoss(2.0),
    "soft kl, tokens": lambda: SoftTargetLoss(2.0),
    "soft cross-entropy": lambda: SoftTargetLoss(2.0, "cross_entropy"),
    "soft mse": lambda: SoftTargetLoss(2.0, "mse"),
    "hidden mse": lambda: HiddenStateLoss(PAIRS),
    "hidden mse, one projector": lambda: HiddenStateLoss(PAIRS, shared_projector=True),
    "hidden cosine": lambda: HiddenStateLoss(PAIRS, metric="cosine"),
    "patience, cls": lambda: PatienceLoss(PAIRS),
    "patience, mean": lambda: PatienceLoss(PAIRS, pooling="mean", normalize=False),
    "patience, last": lambda: PatienceLoss(PAIRS, pooling="last", reduction="paper"),
    "map, scores": lambda: AttentionMapLoss(PAIRS),
    "map, scores of mean heads": lambda: AttentionMapLoss(PAIRS, heads="mean"),
    "map, probabilities mse": lambda: AttentionMapLoss(PAIRS, target="probabilities"),
    "map, probabilities kl": lambda: AttentionMapLoss(PAIRS, target="probabilities", divergence="kl"),
    "relation, minilm v2": lambda: AttentionRelationLoss(PAIRS),
    "relation, minilm v1": lambda: AttentionRelationLoss(PAIRS, MINILM, relation_heads=4),
    "contrastive, mean": lambda: ContrastiveRepresentationLoss(PAIRS),
    "contrastive, cls": lambda: ContrastiveRepresentationLoss(PAIRS, pooling="cls"),
}
NEVER_ZERO = ("task", "soft cross-entropy", "contrastive")
PROJECTED = [name for name in LOSSES if name.startswith(("hidden", "patience", "contrastive"))]
BY_LAYER = [name for name in LOSSES if not name.startswith(("task", "soft"))]
# In-batch negatives are those of the micro-batch: its value cannot be that of the whole batch.
ADDITIVE = [name for name in LOSSES if not name.startswith("contrastive")]


def made(
    name: str, student: Anatomy = STUDENT, teacher: Anatomy = TEACHER, lengths: tuple[int, ...] = LENGTHS
) -> tuple[DistillationLoss, Scene]:
    """The loss, bound and with trainable parts that do something, and a scene for it."""
    head = TOKENS if "tokens" in name else ROWS
    student, teacher = replace(student, head=head), replace(teacher, head=head)
    loss = LOSSES[name]()
    loss.bind(student, teacher)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.normal_(0.0, 0.5)  # a bias of 0 would hide what padding does to it
    return loss, toy_scene(student, teacher, lengths)


def test_every_loss_of_the_catalogue_is_here() -> None:
    """A new loss must keep the contract too, and nobody remembers to say so."""
    assert {type(make()) for make in LOSSES.values()} == set(CATALOGUE.values())


@pytest.mark.parametrize("name", [name for name in LOSSES if not name.startswith(NEVER_ZERO)])
def test_nothing_to_learn_from_oneself(name: str) -> None:
    """Where both agree a divergence is 0 and pulls nowhere; anything else would move a perfect student."""
    loss, scene = made(name, teacher=replace(STUDENT, depth=4))
    ours, theirs = scene.to(torch.float64).student, dict(PAIRS)
    same = Representations(
        ours.logits,
        {theirs[layer]: ours.hidden_states[layer] for layer in theirs},
        {theirs[layer]: ours.attentions[layer] for layer in theirs},
    )
    scene = Scene(ours, same, scene.batch).watched()
    value = loss(*scene.parts())
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    value.backward()
    for tensor in leaves(scene.student):
        assert tensor.grad is None or tensor.grad.abs().max() < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_reaches_student_and_projectors_only(name: str) -> None:
    """A loss that teaches the teacher, or leaves a projector as random as it began, still falls."""
    loss, scene = made(name)
    scene = scene.watched()
    loss(*scene.parts()).backward()
    assert any(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in leaves(scene.student))
    assert all(tensor.grad is None for tensor in leaves(scene.teacher))
    assert (name in PROJECTED) == bool(list(loss.parameters()))
    for parameter in loss.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_padding_changes_nothing(name: str) -> None:
    """Neither its length nor what stands in it: else a loss depends on which rows share a batch.

    The teacher's padding holds NaN. The student's holds huge numbers: a NaN there would reach its real tokens through
    its own attention before any loss could see it.
    """
    loss, scene = made(name)
    results = []
    for shown in (scene.watched(), scene.padded(3, 1e9, torch.nan).watched()):
        value = loss(*shown.parts())
        inputs = [*leaves(shown.student), *loss.parameters()]
        gradients = torch.autograd.grad(value, inputs, allow_unused=True)
        results.append([value, *(inputs[i].new_zeros(()) if g is None else g.norm() for i, g in enumerate(gradients))])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_valid_gives_zero_with_a_gradient(name: str) -> None:
    """A batch without one label or token must neither stop the run (no graph) nor poison it (0 / 0)."""
    loss, scene = made(name)
    scene = scene.nothing_valid().watched()
    value = loss(*scene.parts())
    assert value.item() == 0.0
    value.backward()
    touched = [tensor.grad for tensor in [*leaves(scene.student), *loss.parameters()] if tensor.grad is not None]
    assert touched
    assert all(not gradient.any() for gradient in touched)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_inputs_give_a_float32_value(name: str) -> None:
    """A mean over many tokens in bfloat16 keeps two digits; training in it would follow rounding errors."""
    loss, scene = made(name)
    expected = loss(*scene.parts())
    value = loss(*scene.to(torch.bfloat16).parts())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.03, atol=0.0)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_leaves_the_value_in_float32(name: str) -> None:
    """The Trainer computes the objective under autocast; only projectors may follow it."""
    loss, scene = made(name)
    expected = loss(*scene.parts())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(*scene.watched().parts())
    assert value.dtype == torch.float32
    tolerance = 0.03 if name in PROJECTED else 1e-6
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("lengths", [LENGTHS, (5, 0, 4)])
@pytest.mark.parametrize("name", ADDITIVE)
def test_micro_batches_add_up(name: str, lengths: tuple[int, ...]) -> None:
    """Gradient accumulation and the number of processes must not change a loss; `count` is what it is weighed by."""
    loss, scene = made(name, lengths=lengths)
    parts = [scene.rows(slice(0, 2)), scene.rows(slice(2, 3))]
    counts = [loss.count(part.batch) for part in parts]
    values = [loss(*part.parts()) for part in parts]
    whole = loss(*scene.parts())
    added = torch.stack([value * count for value, count in zip(values, counts, strict=True)]).sum()
    torch.testing.assert_close(added / torch.stack(counts).sum(), whole)
    torch.testing.assert_close(torch.stack(counts).sum(), loss.count(scene.batch))


@pytest.mark.parametrize("name", ADDITIVE)
def test_objective_scales_make_the_update_the_mean_over_all_items(name: str) -> None:
    """The Trainer averages micro-batches; the scales must turn this into the mean over the items of all of them."""
    loss, scene = made(name)
    objective = Objective(only=loss)
    parts = [scene.rows(slice(0, 1)), scene.rows(slice(1, 3))]
    totals = objective.counts(part.batch for part in parts)
    scaled = [
        objective(*part.parts(), objective.counts([part.batch]) * len(parts) / totals.clamp(min=1)).loss
        for part in parts
    ]
    torch.testing.assert_close(torch.stack(scaled).mean(), objective(*scene.parts()).loss)


@pytest.mark.parametrize("name", LOSSES)
def test_binding_again_keeps_the_trainable_parts(name: str) -> None:
    """A later stage goes on with the same pair of models; fresh projectors would undo what the first one learnt."""
    loss, _ = made(name)
    before, values = list(loss.parameters()), [parameter.clone() for parameter in loss.parameters()]
    loss.bind(STUDENT, TEACHER)
    assert [id(parameter) for parameter in loss.parameters()] == [id(parameter) for parameter in before]
    torch.testing.assert_close(list(loss.parameters()), values, rtol=0.0, atol=0.0)
    other = toy_anatomy(width=16, depth=4)
    loss.bind(STUDENT, other)
    assert not {id(parameter) for parameter in loss.parameters()} & {id(parameter) for parameter in before}
    assert loss(*toy_scene(STUDENT, other).parts()).isfinite()
    loss.bind(STUDENT, replace(STUDENT, depth=4))
    assert not list(loss.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_needs_are_those_of_the_map(name: str) -> None:
    """A layer that nobody maps must cost nothing, and one that is mapped must be there."""
    loss, _ = made(name)
    needs = loss.needs()
    if name not in BY_LAYER:
        teacher = Needs() if name.startswith("task") else Needs(logits=True)
        assert needs == (Needs(logits=True), teacher)
        return
    assert not any(side.logits for side in needs)
    assert [side.hidden_states | side.attention_layers for side in needs] == [{1, 2}, {2, 4}]
    assert all(bool(side.hidden_states) == (name in PROJECTED) for side in needs)
    assert all(bool(side.attention_probabilities) == ("probabilities" in name) for side in needs)


@pytest.mark.parametrize("name", LOSSES)
def test_one_row_is_a_batch(name: str) -> None:
    """The last batch of an epoch may hold one row, which has no other row to be compared with."""
    loss, scene = made(name)
    scene = scene.rows(slice(0, 1)).watched()
    value = loss(*scene.parts())
    assert value.shape == ()
    assert value > 0
    value.backward()
    for tensor in [*leaves(scene.student), *loss.parameters()]:
        assert tensor.grad is None or tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_value(name: str) -> None:
    """Detached or clamped in the wrong place, a loss falls along something else than what it reports."""
    student, teacher = toy_anatomy(width=4, depth=2), toy_anatomy(width=8, depth=4)
    loss, scene = made(name, student, teacher, lengths=(3, 2, 1))
    loss, scene = loss.double(), scene.to(torch.float64)
    inputs = [tensor.requires_grad_() for tensor in leaves(scene.student)]

    def value(*tensors: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = loss(rebuilt(scene.student, iter(tensors)), scene.teacher, scene.batch)
        return result

    assert torch.autograd.gradcheck(value, inputs, fast_mode=True)
