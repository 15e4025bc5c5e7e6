"""A student with two heads (DeiT): labels are learnt by one, the teacher by the other, and neither is forgotten."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loss_variants import VARIANTS
from toy_models import image_inputs, toy_bert, toy_deit, toy_deit_with_teacher, toy_vit, with_lora
from toy_representations import STUDENT, TEACHER, Scene, toy_scene
from training_toys import image_rows, trainer_of
from transformers import AutoModelForImageClassification

from hfdistill import FrozenTeacher, Needs
from hfdistill.anatomy import Anatomy
from hfdistill.attachment import PLAIN_HEADS
from hfdistill.capture import capture
from hfdistill.losses import DistillationLoss, HardLabelLoss, SoftTargetLoss, TaskLoss, VocabularyTaskLoss
from hfdistill.objective import Objective
from hfdistill.representations import Batch, Representations
from hfdistill.schedules import Piecewise
from hfdistill.teachers import auto_class

HEADS = ("cls_classifier", "distillation_classifier")
JUDGED_BY = "cskd, correct only"  # looks at which rows the answer gets right, and compares features
COMPARED = [name for name, variant in VARIANTS.items() if variant.needs[0].logits and name != JUDGED_BY]


def two_headed(student: Anatomy = STUDENT, teacher: Anatomy = TEACHER) -> Scene:
    """A scene whose student has two heads, and logits that are their mean."""
    scene = toy_scene(student, teacher).watched()
    assert scene.student.logits is not None
    ours, taught = (torch.randn_like(scene.student.logits).requires_grad_() for _ in HEADS)
    shown = replace(scene.student, logits=(ours + taught) / 2, class_logits=ours, distillation_logits=taught)
    return replace(scene, student=shown)


def learning_heads(scene: Scene) -> list[bool]:
    """Whether class head and distillation head got a gradient."""
    heads = (scene.student.class_logits, scene.student.distillation_logits)
    return [head is not None and head.grad is not None and bool(head.grad.any()) for head in heads]


@pytest.mark.parametrize("name", COMPARED)
def test_each_loss_reaches_its_head_alone(name: str) -> None:
    """Labels on the distillation head, or the teacher on the class head, and the second head is for nothing."""
    variant = VARIANTS[name]
    student, teacher = (replace(side, head=variant.head, classes=variant.classes) for side in (STUDENT, TEACHER))
    torch.manual_seed(0)
    loss, scene = variant.make(), two_headed(student, teacher)
    loss.bind(student, teacher)
    loss(*scene.parts()).backward()
    assert learning_heads(scene) == [loss.labels_alone, not loss.labels_alone]


def test_the_task_losses_alone_know_nothing_but_labels() -> None:
    """A loss that called itself so wrongly would train the head of another."""
    assert {type(v.make()) for v in VARIANTS.values() if v.make().labels_alone} == {TaskLoss, VocabularyTaskLoss}


@pytest.mark.parametrize("name", ["hard", "soft"])
def test_the_teachers_term_moves_distillation_head_and_trunk_only(name: str) -> None:
    """The class head must not learn from the teacher, nor the distillation head from the labels: on a real DeiT."""
    student, teacher = toy_deit_with_teacher(), toy_vit(layers=3, seed=1)
    loss: DistillationLoss = HardLabelLoss() if name == "hard" else SoftTargetLoss()
    batch, inputs = Batch(3, torch.tensor([0, 1, 2])), image_inputs()
    for term, head, other in ((TaskLoss(), *HEADS), (loss, *reversed(HEADS))):
        student.zero_grad()
        ours, theirs = (capture(model, inputs, Needs(logits=True))[1] for model in (student, teacher))
        term(ours, theirs, batch).backward()
        moved = {name for name, value in student.named_parameters() if value.grad is not None and value.grad.any()}
        assert {f"{head}.weight", "deit.embeddings.patch_embeddings.projection.weight"} <= moved
        assert not [parameter for parameter in moved if parameter.startswith(other)]


@pytest.mark.parametrize(
    ("losses", "heads"),
    [
        ({"task": TaskLoss(), "kd": SoftTargetLoss()}, ("class_logits", "distillation_logits")),
        ({"task": TaskLoss()}, ("logits", None)),
        ({"kd": SoftTargetLoss()}, (None, "logits")),
        ({"task": TaskLoss(weight=0.0), "kd": SoftTargetLoss()}, (None, "logits")),
        ({"task": TaskLoss(), "kd": SoftTargetLoss(weight=Piecewise({0.0: 1.0, 0.5: 0.0}))}, ("logits", None)),
    ],
    ids=["both", "labels alone", "teacher alone", "labels weigh nothing", "teacher switched off"],
)
def test_no_head_is_left_behind(losses: dict[str, DistillationLoss], heads: tuple[str | None, str | None]) -> None:
    """A head that nothing trains is noise in the mean that the model answers with: the control arm would be spoilt."""
    scene = two_headed()
    scene.batch.progress = 0.7
    result = Objective(**losses)(*scene.parts())
    result.loss.backward()
    assert learning_heads(scene) == [True, True]
    for term, head in zip(("task", "kd"), heads, strict=True):
        if head is not None:
            one_head = Representations(vars(scene.student)[head])
            torch.testing.assert_close(result.terms[term], losses[term](one_head, scene.teacher, scene.batch).detach())


def test_a_teacher_with_two_heads_teaches_its_answer() -> None:
    """What counts is what it would say when used: the mean; its distillation head alone is half of it."""
    teacher = FrozenTeacher(toy_deit_with_teacher(seed=1))
    shown = teacher.represent(image_inputs(), Needs(logits=True))
    assert shown.logits is not None
    assert shown.class_logits is not None
    assert shown.distillation_logits is not None
    torch.testing.assert_close(shown.logits, (shown.class_logits + shown.distillation_logits) / 2)
    student, batch = Representations(torch.randn(3, 3)), Batch(3)
    expected = SoftTargetLoss()(student, Representations(shown.logits), batch)
    torch.testing.assert_close(SoftTargetLoss()(student, shown, batch), expected)


def test_its_anatomy_is_that_of_an_image_classifier() -> None:
    """With an unknown head TaskLoss would wait for a loss that this class, which takes no labels, never gives."""
    anatomy = Anatomy.of(toy_deit_with_teacher())
    assert anatomy.head == "ForImageClassification"
    assert anatomy.head in PLAIN_HEADS
    assert anatomy.distillation_head
    assert Anatomy.of(with_lora(toy_deit_with_teacher(), ["q_proj", "v_proj"])).distillation_head
    assert not Anatomy.of(toy_deit()).distillation_head


def test_a_saved_student_comes_back_with_both_heads(tmp_path: Path) -> None:
    """With the one-headed class of the same Auto class both trained heads would be dropped for a random one."""
    student = toy_deit_with_teacher()
    student.save_pretrained(tmp_path)
    assert auto_class(student) is AutoModelForImageClassification
    loaded, info = auto_class(student).from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(student)
    assert not any(info.values()), info
    for name in ("logits", "cls_logits", "distillation_logits"):
        torch.testing.assert_close(loaded(**image_inputs())[name], student(**image_inputs())[name])


def test_one_head_for_both_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """It is not what the paper does, and nobody would see it from the outside."""
    teacher = Anatomy.of(toy_vit())
    with caplog.at_level(logging.WARNING):
        HardLabelLoss().bind(Anatomy.of(toy_deit_with_teacher()), teacher)
        assert not caplog.messages
        HardLabelLoss().bind(Anatomy.of(toy_bert()), teacher)
    assert len(caplog.messages) == 1
    assert "bert has no distillation head, so its one head learns the teacher's choice" in caplog.messages[0]


def test_training_moves_both_heads(tmp_path: Path) -> None:
    """Through the trainer, whose student takes no labels: the preset as a user runs it."""
    student = toy_deit_with_teacher()
    before = {name: value.detach().clone() for name, value in student.named_parameters()}
    trainer = trainer_of(tmp_path, "deit", student, image_rows(), teacher=toy_vit(layers=3, seed=1))
    trainer.train()
    after = dict(student.named_parameters())
    assert all(not torch.equal(before[f"{head}.weight"], after[f"{head}.weight"]) for head in HEADS)
    assert {"loss/task", "loss/kd"} <= set(trainer.state.log_history[0])
