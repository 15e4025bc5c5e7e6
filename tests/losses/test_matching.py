"""Attended layers, attended channels, and features of auxiliary classifiers: what the classes add to the formulas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from toy_representations import STUDENT, TEACHER, TOKENS, Scene, toy_anatomy, toy_scene

from hfdistill.anatomy import Anatomy
from hfdistill.losses import DistillationLoss
from hfdistill.losses.feature.attended_layer import AttendedLayerLoss
from hfdistill.losses.feature.attentive_channel import AttentiveChannelLoss
from hfdistill.losses.feature.task_oriented import TaskOrientedLoss
from hfdistill.losses.pooling import pooled_vector
from hfdistill.representations import Batch, Representations
from hfdistill.schedules import Linear

PAIRS = ((1, 2), (2, 4))


def bound(loss: Any, student: Anatomy = STUDENT, teacher: Anatomy = TEACHER) -> Any:
    """The loss, its trainable parts drawn from one seed."""
    torch.manual_seed(0)
    loss.bind(student, teacher)
    return loss


def image_pair(student_side: int, teacher_side: int) -> tuple[Anatomy, Anatomy, Representations, Representations]:
    """Two image models with a class token and grids of their own, and what they show of two images."""
    generator = torch.Generator().manual_seed(0)
    sides = ((STUDENT, student_side, (1, 2)), (TEACHER, teacher_side, (2, 4)))
    anatomies = [replace(anatomy, prefix_tokens=1, grid=(side, side)) for anatomy, side, _ in sides]
    shown = [
        Representations(
            hidden_states={
                layer: torch.randn(2, side * side + 1, anatomy.width, generator=generator) for layer in layers
            }
        )
        for anatomy, side, layers in sides
    ]
    return anatomies[0], anatomies[1], shown[0], shown[1]


@pytest.mark.parametrize(("student_side", "teacher_side"), [(2, 2), (2, 4), (4, 2)])
@pytest.mark.parametrize("make", [AttendedLayerLoss, AttentiveChannelLoss])
def test_class_tokens_of_images_do_not_count(
    make: type[DistillationLoss], student_side: int, teacher_side: int
) -> None:
    """They have no place on the map; the larger grid is averaged to the smaller."""
    student, teacher, shown, target = image_pair(student_side, teacher_side)
    loss = bound(make(PAIRS), student, teacher)  # type: ignore[call-arg]
    value = loss(shown, target, Batch(2))
    assert value > 0
    for side in (shown, target):
        for states in side.hidden_states.values():
            states[:, 0] += 5
    torch.testing.assert_close(loss(shown, target, Batch(2)), value, rtol=0, atol=0)


def attention_of(loss: AttendedLayerLoss, scene: Scene) -> Tensor:
    """The attention (B, T, S) that a bound loss gives to a scene."""
    assert loss.attention is not None
    vectors = [
        [pooled_vector(shown.hidden_states[layer], scene.batch.mask, "mean") for layer in layers]
        for shown, layers in ((scene.student, loss.students), (scene.teacher, loss.teachers))
    ]
    return loss.attention(*vectors, scene.batch.real_rows())


def test_every_student_layer_meets_every_teacher_layer() -> None:
    """The method written out: energies of real tokens as unit vectors, compared pair by pair."""
    loss, scene = bound(AttendedLayerLoss(width=5)), toy_scene()
    assert (loss.students, loss.teachers) == ((1, 2), (1, 2, 3, 4))
    attention = attention_of(loss, scene)
    expected = torch.zeros(())
    for row, length in enumerate((5, 2, 4)):
        for t, theirs in enumerate(loss.teachers):
            for s, ours in enumerate(loss.students):
                maps = [
                    F.normalize(shown.hidden_states[layer][row, :length].square().mean(-1), dim=0)
                    for shown, layer in ((scene.student, ours), (scene.teacher, theirs))
                ]
                expected = expected + attention[row, t, s] * (maps[0] - maps[1]).square().mean() / 3
    torch.testing.assert_close(loss(*scene.parts()), expected)
    assert loss.count(scene.batch) == 3


def test_queries_are_of_teacher_layers_and_keys_of_student_layers() -> None:
    """The attention written out from its weights: one reading per layer, a rectified key, one query per teacher."""
    loss, scene = bound(AttendedLayerLoss(PAIRS, width=5)), toy_scene()
    parts, logits = loss.attention, torch.zeros(3, 2, 2)

    def mean(states: Tensor) -> Tensor:
        return pooled_vector(states, scene.batch.mask, "mean")

    for s, ours in enumerate((1, 2)):
        key = parts.keys[s].norm(parts.keys[s].linear(mean(scene.student.hidden_states[ours]))).clamp(min=0)
        every = parts.bilinear.norm(parts.bilinear.linear(key))  # (B, T * Q)
        for t, theirs in enumerate((2, 4)):
            query = parts.queries[t].norm(parts.queries[t].linear(mean(scene.teacher.hidden_states[theirs])))
            position = parts.teacher_position[t] @ parts.student_position[s]
            logits[:, t, s] = ((every[:, 5 * t : 5 * t + 5] * query).sum(-1) + position) / 5**0.5
    torch.testing.assert_close(attention_of(loss, scene), logits.softmax(-1))


def test_one_layer_each_leaves_nothing_to_attend_to() -> None:
    """The attention is 1, and the same states give 0."""
    loss = bound(AttendedLayerLoss([(2, 2)]), STUDENT, STUDENT)
    scene = toy_scene(STUDENT, STUDENT)
    assert torch.equal(attention_of(loss, scene), torch.ones(3, 1, 1))
    assert loss(scene.student, scene.student, scene.batch) == 0
    assert loss(*scene.parts()) > 0


def test_a_norm_over_the_batch_is_that_of_its_real_rows() -> None:
    """The paper's batch normalisation: a row of padding alone must not shift the others."""
    loss = bound(AttendedLayerLoss(PAIRS, width=5, norm="batch"))
    holed = toy_scene(lengths=(5, 0, 4))
    torch.testing.assert_close(loss(*holed.parts()), loss(*holed.rows(slice(0, 3, 2)).parts()))
    reading = loss.attention.queries[0]
    vectors = torch.randn(16, TEACHER.width)
    expected = F.batch_norm(reading.linear(vectors), None, None, training=True)
    torch.testing.assert_close(reading(vectors, None), expected)
    real = torch.arange(16) < 9
    torch.testing.assert_close(
        reading(vectors, real)[real], F.batch_norm(reading.linear(vectors[real]), None, None, training=True)
    )


def test_a_loss_that_is_not_bound_says_so() -> None:
    """It does not know the layers yet."""
    with pytest.raises(ValueError, match=r"must be bound to two models before it compares"):
        AttendedLayerLoss()(*toy_scene().parts())


def test_channel_weights_sum_to_one() -> None:
    """Learnt from the loss that they weigh, they would fall to 0 otherwise."""
    loss, scene = bound(AttentiveChannelLoss(PAIRS, ratio=0.5)), toy_scene()
    attention = loss.attentions[0]
    assert attention.inner.weight.shape == (6, 12)
    weights = attention(pooled_vector(scene.teacher.hidden_states[2], scene.batch.mask, "mean"))
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))
    assert (weights > 0).all()
    before = loss(*scene.parts())
    with torch.no_grad():
        attention.outer.bias.fill_(3.0)
        attention.outer.weight.zero_()
    assert loss(*scene.parts()) != before
    torch.testing.assert_close(attention(torch.randn(2, 12)), torch.full((2, 12), 1 / 12))


def test_each_pair_has_its_own_channel_weights() -> None:
    """Layers have other channels that matter."""
    loss, scene = bound(AttentiveChannelLoss(PAIRS)), toy_scene()
    values = [
        loss.compare(
            loss.project(position, scene.student.hidden_states[ours]),
            scene.teacher.hidden_states[theirs],
            scene.batch.mask,
            position,
        )
        for position, (ours, theirs) in enumerate(PAIRS)
    ]
    torch.testing.assert_close(loss(*scene.parts()), torch.stack(values).sum())
    with torch.no_grad():
        loss.attentions[1].outer.bias[0] += 3
    assert loss(*scene.parts()) != torch.stack(values).sum()


def by_hand(loss: TaskOrientedLoss, scene: Scene, temperature: float) -> Tensor:
    """The terms of TOFD for the labelled rows, one after the other."""
    assert scene.batch.labels is not None
    labelled = scene.batch.labels != -100
    labels, total = scene.batch.labels[labelled], torch.zeros(())
    for (ours, theirs), depth in zip(loss.pairs, loss.depths, strict=True):
        student, teacher = (
            pooled_vector(states, scene.batch.mask, "mean")[labelled]
            for states in (scene.student.hidden_states[ours], scene.teacher.hidden_states[theirs])
        )
        feature, target = F.gelu(depth.student_adapter(student)), F.gelu(depth.teacher_adapter(teacher))
        answer, goal = depth.student_head(feature), depth.teacher_head(target)
        total = total + F.cross_entropy(answer, labels) + F.cross_entropy(goal, labels)
        soft = (goal / temperature).softmax(-1).detach()
        total = total - (soft * (answer / temperature).log_softmax(-1)).sum(-1).mean()
        total = total + 0.05 * (depth.map(feature) - target.detach()).norm()
        weight = depth.map.weight
        for gram in (weight @ weight.T, weight.T @ weight):
            total = total + 0.03 * (gram - torch.eye(len(gram))).norm()
    return total


@pytest.mark.parametrize(("progress", "temperature"), [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0)])
def test_task_oriented_terms_and_the_rise_of_the_temperature(progress: float, temperature: float) -> None:
    """Over labelled rows only; T is the authors' 1 + 3 e / E."""
    loss, scene = bound(TaskOrientedLoss(PAIRS)), toy_scene()
    scene.batch.progress = progress
    assert loss.temperature == Linear(1.0, 4.0)
    torch.testing.assert_close(loss(*scene.parts()), by_hand(loss, scene, temperature))
    assert loss.count(scene.batch) == 2


def test_labels_of_empty_rows_do_not_count() -> None:
    """A row of padding alone has no vector to classify."""
    loss, holed = bound(TaskOrientedLoss(PAIRS)), toy_scene(lengths=(5, 0, 4))
    holed.batch.labels = torch.tensor([0, 1, 2])
    torch.testing.assert_close(loss(*holed.parts()), loss(*holed.rows(slice(0, 3, 2)).parts()))
    assert loss.count(holed.batch) == 2


def test_the_teachers_classifiers_learn_the_labels_alone() -> None:
    """Drawn to the student's features they would all agree on nothing, the cheapest way to match."""
    loss, scene = bound(TaskOrientedLoss(PAIRS)), toy_scene()
    expected = torch.zeros(())
    assert scene.batch.labels is not None
    for (_, theirs), depth in zip(loss.pairs, loss.depths, strict=True):
        vectors = pooled_vector(scene.teacher.hidden_states[theirs], scene.batch.mask, "mean")
        goal = depth.teacher_head(F.gelu(depth.teacher_adapter(vectors)))
        expected = expected + F.cross_entropy(goal, scene.batch.labels)
    owned = [value for name, value in loss.named_parameters() if "teacher" in name]
    assert len(owned) == 8
    torch.testing.assert_close(torch.autograd.grad(loss(*scene.parts()), owned), torch.autograd.grad(expected, owned))


def test_a_teacher_may_have_tokens_of_its_own() -> None:
    """One vector per row is compared; the teacher's is pooled over the teacher's own mask."""
    loss, scene = bound(TaskOrientedLoss(PAIRS)), toy_scene()
    expected = loss(*scene.parts())
    longer = {
        layer: F.pad(states, (0, 0, 0, 2), value=torch.nan) for layer, states in scene.teacher.hidden_states.items()
    }
    assert scene.batch.mask is not None
    scene.batch.teacher_mask = F.pad(scene.batch.mask, (0, 2))
    torch.testing.assert_close(loss(scene.student, Representations(hidden_states=longer), scene.batch), expected)
    assert not loss.same_tokens


@pytest.mark.parametrize("labels", [None, torch.rand(3), torch.zeros(3, 5, dtype=torch.long)])
def test_task_oriented_needs_a_class_for_each_row(labels: Tensor | None) -> None:
    """Nothing else tells its classifiers what the task needs."""
    loss, scene = bound(TaskOrientedLoss(PAIRS)), toy_scene()
    scene.batch.labels = labels
    with pytest.raises(ValueError, match=r"needs one class label per row, got"):
        loss(*scene.parts())


@pytest.mark.parametrize("student", [toy_anatomy(classes=1), toy_anatomy(head=TOKENS)])
def test_models_that_classify_no_rows_are_refused(student: Anatomy) -> None:
    """Before training, with another way out."""
    with pytest.raises(ValueError, match=r"a student that classifies rows into at least 2 classes.*HiddenStateLoss"):
        TaskOrientedLoss().bind(student, TEACHER)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttendedLayerLoss(norm="group"), r"norm must be one of 'layer', 'batch', got 'group'"),
        (lambda: AttendedLayerLoss(width=0), r"width must be at least 1, got 0"),
        (lambda: AttentiveChannelLoss(ratio=0.0), r"ratio must be above 0, got 0.0"),
        (lambda: TaskOrientedLoss(alpha=-1.0), r"alpha and beta must be at least 0, got -1.0 and 0.03"),
        (lambda: TaskOrientedLoss(pooling="max"), r"pooling must be one of 'cls', 'mean', 'last', got 'max'"),
    ],
)
def test_options_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    """At construction, where the user sees what was written."""
    with pytest.raises(ValueError, match=message):
        make()
