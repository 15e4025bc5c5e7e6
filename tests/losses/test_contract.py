"""The contract that every loss of the catalogue keeps, whatever it compares (hfdistill/losses/base.py says it).

tests/loss_variants/ lists the ways to use each class; a class without one fails a test. What a loss computes is tested
in its own file.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from loss_variant import PAIRS
from loss_variants import VARIANTS
from torch import Tensor
from toy_representations import DATA_LABELS, LENGTHS, STUDENT, TEACHER, Scene, leaves, rebuilt, toy_anatomy, toy_scene

from hfdistill.anatomy import Anatomy
from hfdistill.losses import CATALOGUE, DistillationLoss
from hfdistill.losses.bilevel import BilevelLoss
from hfdistill.objective import Objective
from hfdistill.representations import Representations

ADDITIVE = [name for name, variant in VARIANTS.items() if variant.additive]


def made(
    name: str, student: Anatomy = STUDENT, teacher: Anatomy = TEACHER, lengths: tuple[int, ...] = LENGTHS
) -> tuple[DistillationLoss, Scene]:
    """The loss, bound and with trainable parts that do something, and a scene for it."""
    variant = VARIANTS[name]
    student, teacher = (replace(side, head=variant.head, classes=variant.classes) for side in (student, teacher))
    torch.manual_seed(0)
    loss = variant.make()
    bound(loss, student, teacher)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.normal_(0.0, 0.5)  # a bias of 0 would hide what padding does to it
    return loss, toy_scene(student, teacher, lengths)


def bound(loss: DistillationLoss, student: Anatomy, teacher: Anatomy) -> None:
    """Bind to two models, and to a training set of 16 rows if it wants one."""
    loss.bind(student, teacher)
    if loss.indexed:
        loss.bind_data(len(DATA_LABELS), DATA_LABELS)


def value_of(loss: DistillationLoss, scene: Scene) -> Tensor:
    """The value; a loss that draws at random draws the same each time, and its memory stays as it was."""
    torch.manual_seed(0)
    memory = {name: buffer.clone() for name, buffer in loss.named_buffers()}
    value = loss(*scene.parts())
    for name, buffer in loss.named_buffers():
        buffer.data = memory[name]
    return value


def test_every_loss_of_the_catalogue_is_here() -> None:
    """A new loss must keep the contract too, and nobody remembers to say so."""
    assert {type(variant.make()) for variant in VARIANTS.values()} == set(CATALOGUE.values())


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.zero_at_equality])
def test_nothing_to_learn_from_oneself(name: str) -> None:
    """Where both agree a divergence is 0 and pulls nowhere; anything else would move a perfect student."""
    loss, scene = made(name, teacher=replace(STUDENT, depth=4))
    loss = loss.double()
    ours, theirs = scene.to(torch.float64).student, dict(PAIRS)
    same = Representations(
        ours.logits,
        {theirs[layer]: ours.hidden_states[layer] for layer in theirs},
        {theirs[layer]: ours.attentions[layer] for layer in theirs},
        output_head=ours.output_head,
    )
    scene = Scene(ours, same, scene.batch).watched()
    value = value_of(loss, scene)
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    if not VARIANTS[name].flat_at_equality:
        return
    value.backward()
    for tensor in leaves(scene.student):
        assert tensor.grad is None or tensor.grad.abs().max() < 1e-12


@pytest.mark.parametrize("name", VARIANTS)
def test_gradient_reaches_student_and_projectors_only(name: str) -> None:
    """A loss that teaches the teacher, or leaves a projector as random as it began, still falls."""
    loss, scene = made(name)
    scene = scene.watched()
    value_of(loss, scene).backward()
    assert any(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in leaves(scene.student))
    assert all(tensor.grad is None for tensor in leaves(scene.teacher))
    assert (VARIANTS[name].trainable != "never") == bool(list(loss.parameters()))
    elsewhere = set(loss.meta_networks().parameters()) if isinstance(loss, BilevelLoss) else set()
    for parameter in set(loss.parameters()) - elsewhere:
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_changes_nothing(name: str) -> None:
    """Neither its length nor what stands in it: else a loss depends on which rows share a batch.

    The teacher's padding holds NaN. The student's holds huge numbers: a NaN there would reach its real tokens through
    its own attention before any loss could see it.
    """
    loss, scene = made(name)
    results = []
    for shown in (scene.watched(), scene.padded(3, 1e9, torch.nan).watched()):
        value = value_of(loss, shown)
        inputs = [*leaves(shown.student), *loss.parameters()]
        gradients = torch.autograd.grad(value, inputs, allow_unused=True)
        results.append([value, *(inputs[i].new_zeros(()) if g is None else g.norm() for i, g in enumerate(gradients))])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_valid_gives_zero_with_a_gradient(name: str) -> None:
    """A batch without one label or token must neither stop the run (no graph) nor poison it (0 / 0)."""
    loss, scene = made(name)
    scene = scene.nothing_valid().watched()
    value = value_of(loss, scene)
    assert value.item() == 0.0
    value.backward()
    touched = [tensor.grad for tensor in [*leaves(scene.student), *loss.parameters()] if tensor.grad is not None]
    assert touched
    assert all(not gradient.any() for gradient in touched)


@pytest.mark.parametrize("name", VARIANTS)
def test_half_precision_inputs_give_a_float32_value(name: str) -> None:
    """A mean over many tokens in bfloat16 keeps two digits; training in it would follow rounding errors."""
    loss, scene = made(name)
    expected = value_of(loss, scene)
    value = value_of(loss, scene.to(torch.bfloat16))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=VARIANTS[name].tolerance, atol=0.0)


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if not variant.needs[1].output_head])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_teacher_in_half_precision_is_lifted(name: str, dtype: torch.dtype) -> None:
    """Beside a float32 student (teacher_dtype) nothing but the teacher's own numbers may be rounded.

    Where a loss takes the last step of the teacher itself, its head, that is taken in the teacher's precision.
    """
    loss, scene = made(name)
    half = scene.to(dtype).teacher
    rounded = replace(scene, teacher=half).to(torch.float32).teacher
    results = []
    for teacher in (half, rounded):
        shown = Scene(scene.student, teacher, scene.batch).watched()
        value = value_of(loss, shown)
        inputs = [*leaves(shown.student), *loss.parameters()]
        results.append([value, *torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("name", VARIANTS)
def test_autocast_leaves_the_value_in_float32(name: str) -> None:
    """The Trainer computes the objective under autocast; only projectors and heads may follow it."""
    loss, scene = made(name)
    expected = value_of(loss, scene)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = value_of(loss, scene.watched())
    assert value.dtype == torch.float32
    products = VARIANTS[name].trainable != "never" or VARIANTS[name].needs[0].output_head
    tolerance = VARIANTS[name].tolerance if products else 1e-6
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("lengths", [LENGTHS, (5, 0, 4)])
@pytest.mark.parametrize("name", ADDITIVE)
def test_micro_batches_add_up(name: str, lengths: tuple[int, ...]) -> None:
    """Gradient accumulation and the number of processes must not change a loss; `count` is what it is weighed by."""
    loss, scene = made(name, lengths=lengths)
    parts = [scene.rows(slice(0, 2)), scene.rows(slice(2, 3))]
    counts = [loss.count(part.batch) for part in parts]
    values = [value_of(loss, part) for part in parts]
    whole = value_of(loss, scene)
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


@pytest.mark.parametrize("name", VARIANTS)
def test_binding_again_keeps_the_trainable_parts(name: str) -> None:
    """A later stage goes on with the same pair of models; fresh projectors would undo what the first one learnt."""
    loss, _ = made(name)
    head = {"head": VARIANTS[name].head, "classes": VARIANTS[name].classes}
    student, teacher, other = (replace(side, **head) for side in (STUDENT, TEACHER, toy_anatomy(width=16, depth=4)))
    before, values = list(loss.parameters()), [parameter.clone() for parameter in loss.parameters()]
    bound(loss, student, teacher)
    assert [id(parameter) for parameter in loss.parameters()] == [id(parameter) for parameter in before]
    torch.testing.assert_close(list(loss.parameters()), values, rtol=0.0, atol=0.0)
    bound(loss, student, other)
    assert value_of(loss, toy_scene(student, other)).isfinite()
    if VARIANTS[name].trainable == "widths":
        assert not {id(parameter) for parameter in loss.parameters()} & {id(parameter) for parameter in before}
        bound(loss, student, replace(student, depth=4))
        assert not list(loss.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_needs_are_those_of_the_map(name: str) -> None:
    """A layer that nobody maps must cost nothing, and one that is mapped must be there."""
    loss, _ = made(name)
    assert loss.needs() == VARIANTS[name].needs


@pytest.mark.parametrize("name", VARIANTS)
def test_one_row_is_a_batch(name: str) -> None:
    """The last batch of an epoch may hold one row, which has no other row to be compared with."""
    loss, scene = made(name)
    scene = scene.rows(slice(0, 1)).watched()
    value = value_of(loss, scene)
    assert value.shape == ()
    assert value > 0 if VARIANTS[name].single_row else value == 0
    assert VARIANTS[name].single_row or loss.fewest_rows > 1, "the trainer must be able to refuse batches of one row"
    value.backward()
    for tensor in [*leaves(scene.student), *loss.parameters()]:
        assert tensor.grad is None or tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.smooth])
def test_gradients_are_those_of_the_value(name: str) -> None:
    """Detached or clamped in the wrong place, a loss falls along something else than what it reports."""
    student, teacher = toy_anatomy(width=4, depth=2), toy_anatomy(width=8, depth=4)
    loss, scene = made(name, student, teacher, lengths=(3, 2, 1))
    loss, scene = loss.double(), scene.to(torch.float64)
    inputs = [tensor.requires_grad_() for tensor in leaves(scene.student)]

    def value(*tensors: Tensor) -> Tensor:
        return value_of(loss, Scene(rebuilt(scene.student, iter(tensors)), scene.teacher, scene.batch))

    assert torch.autograd.gradcheck(value, inputs, fast_mode=True)


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.needs[0].logits])
@pytest.mark.parametrize("shut_out", [False, True])
def test_extreme_logits_stay_finite(name: str, shut_out: bool) -> None:
    """A confident model, or a class that both heads shut out with -inf, must not end a run in NaN."""
    shut_out = shut_out and VARIANTS[name].shut_out
    loss, scene = made(name)
    for side in (scene.student, scene.teacher):
        assert side.logits is not None
        side.logits = 1e4 * side.logits.sign()
        if shut_out:
            side.logits[..., -1] = -torch.inf
    assert scene.batch.labels is not None
    scene.batch.labels = scene.batch.labels.clamp(max=VARIANTS[name].classes - 2)
    scene = scene.watched()
    value = value_of(loss, scene)
    assert value.isfinite()
    value.backward()
    for tensor in [*leaves(scene.student), *loss.parameters()]:
        assert tensor.grad is None or tensor.grad.isfinite().all()
