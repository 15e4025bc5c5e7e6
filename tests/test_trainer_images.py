"""The trainer on images: a teacher that sees the student's, mixed and converted, and images that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from toy_models import toy_resnet, toy_swin, toy_vit
from training_toys import image_rows, largest_difference, logged, trainer_of, weights_of
from transformers import PreTrainedModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hfdistill import FrozenTeacher, Objective, SoftTargetLoss, TaskLoss
from hfdistill.images.mixing import ImageMixing
from hfdistill.mixup import Mix

MIXING = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
OURS = ViTImageProcessorPil(size=8)
THEIRS = ViTImageProcessorPil(size=8, image_mean=[0.48, 0.45, 0.4], image_std=[0.2, 0.3, 0.25])


def kd() -> Objective:
    """What is 0 where both models answer alike, and only there."""
    return Objective(kd=SoftTargetLoss(temperature=1.0))


class Watching(FrozenTeacher):
    """A teacher that remembers the images that it was given."""

    seen: list[Tensor]

    def represent(self, inputs: Any, needs: Any) -> Any:
        self.seen = [*vars(self).get("seen", []), inputs["pixel_values"]]
        return super().represent(inputs, needs)


def in_other_pixels(model: PreTrainedModel) -> PreTrainedModel:
    """The same function of an image, of pixels as THEIRS gives them instead of OURS: another first layer."""
    patches = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    means, stds = torch.tensor(THEIRS.image_mean), torch.tensor(THEIRS.image_std)
    with torch.no_grad():  # pixels of OURS are those of THEIRS * 2 std + (2 mean - 1)
        patches.bias += (patches.weight * (2 * means - 1)[None, :, None, None]).sum((1, 2, 3))
        patches.weight *= 2 * stds[None, :, None, None]
    return model


@pytest.mark.parametrize("mixing", [MIXING, {"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}])
def test_a_consistent_teacher_agrees_with_itself(mixing: dict[str, float], tmp_path: Path) -> None:
    """The same network behind another processor has nothing to teach, if it sees the very same mixed images."""
    trainer = trainer_of(
        *(tmp_path, kd(), toy_vit(), image_rows()),
        **{"teacher": in_other_pixels(toy_vit()), "processing_class": OURS, "teacher_processing_class": THEIRS},
        **{"learning_rate": 0.0, "max_steps": 4, **mixing},
    )
    trainer.train()
    assert [entry["loss/kd"] for entry in logged(trainer)] == pytest.approx([0.0] * 4, abs=1e-6)
    unconverted = trainer_of(
        *(tmp_path, kd(), toy_vit(), image_rows()), teacher=in_other_pixels(toy_vit()), learning_rate=0.0, **mixing
    )
    unconverted.train()
    assert all(entry["loss/kd"] > 1e-3 for entry in logged(unconverted)), "or the test could not fail"


def test_the_teacher_sees_what_the_student_is_trained_on(tmp_path: Path) -> None:
    """Mixed, and mixed anew at each step."""
    teacher, rows = Watching(toy_vit(seed=1)), image_rows(4)
    trainer = trainer_of(tmp_path, kd(), toy_vit(), rows, teacher=teacher, max_steps=3, **MIXING)
    given: list[Tensor] = []
    trainer.student.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["pixel_values"]), with_kwargs=True
    )
    trainer.train()
    assert [torch.equal(*pair) for pair in zip(teacher.seen, given, strict=True)] == [True] * 3
    originals = torch.tensor(rows["pixel_values"])
    for images in given:
        assert not any((images[0] == image).all() for image in originals)


def test_a_resumed_run_mixes_the_same(tmp_path: Path) -> None:
    """Shares, partners and places are drawn from the generator that a checkpoint restores."""
    plan = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "teacher": toy_vit(seed=1), **MIXING}
    runs = [trainer_of(tmp_path / at, "kd", toy_vit(), image_rows(16), **plan) for at in ("whole", "resumed")]
    runs[0].train()
    runs[1].train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert largest_difference(*(weights_of(run.student) for run in runs)) == 0
    others = trainer_of(tmp_path, "kd", toy_vit(), image_rows(16), **plan | {"mixup_alpha": 0.0})
    others.train()
    assert largest_difference(*(weights_of(run.student) for run in (runs[0], others))) > 0


@pytest.mark.parametrize("smoothing", [{"label_smoothing_factor": 0.2}, {}])
def test_labels_of_both_images_are_learnt(
    smoothing: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the shares of the pixels, smoothed by either way of asking for it; an ignored label has no share."""
    mix = Mix(4, torch.arange(4), torch.tensor([1, 2, 3, 0]), torch.full((4,), 0.3))
    monkeypatch.setattr(ImageMixing, "draw", lambda self, pixels: mix)
    rows = image_rows(4).remove_columns("labels").add_column("labels", [0, 2, -100, 1])
    task = TaskLoss() if smoothing else TaskLoss(label_smoothing=0.2)
    trainer = trainer_of(
        *(tmp_path, Objective(task=task), toy_vit(), rows),
        **{"teacher": None, "max_steps": 1, "learning_rate": 0.0, "train_sampling_strategy": "sequential"},
        **{**MIXING, **smoothing},
    )
    trainer.train()
    images, labels = torch.tensor(rows["pixel_values"]), torch.tensor(rows["labels"])
    logits = toy_vit()(0.7 * images + 0.3 * images[mix.partners]).logits
    options: dict[str, Any] = {"reduction": "none", "label_smoothing": 0.2, "ignore_index": -100}
    own, other = (F.cross_entropy(logits, side, **options) for side in (labels, labels[mix.partners]))
    expected = (0.7 * own + 0.3 * other).sum() / 3
    assert logged(trainer)[0]["loss/task"] == pytest.approx(expected.item(), rel=1e-5)


def test_accumulation_counts_mixed_rows_like_whole_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A permutation mixed in one share keeps the number of labels, so an update is still the mean over all of them."""

    def draw(self: ImageMixing, pixels: Tensor) -> Mix:
        rows = len(pixels)
        return Mix(rows, torch.arange(rows), torch.arange(rows).flip(0), torch.full((rows,), 0.3))

    monkeypatch.setattr(ImageMixing, "draw", draw)
    labels = [0, 1, -100, 2]  # in halves of two rows, which are mixed with each other in the whole batch, too
    rows = image_rows(4).remove_columns("labels").add_column("labels", labels)
    order = [0, 2, 3, 1]
    plan = {"max_steps": 1, "teacher": None, "train_sampling_strategy": "sequential", **MIXING}
    runs = []
    for size, given in ((4, rows.select(order)), (2, rows.select([0, 1, 2, 3]))):
        objective = Objective(task=TaskLoss())
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        runs.append(trainer_of(tmp_path, objective, toy_vit(), given, **plan, **sizes))
        runs[-1].train()
    assert largest_difference(*(weights_of(run.student) for run in runs)) < 1e-6


def test_evaluation_is_of_whole_images(tmp_path: Path) -> None:
    """Mixing belongs to training, and converting belongs to the teacher."""
    plain = trainer_of(tmp_path, kd(), toy_vit(), image_rows(), teacher=toy_vit(seed=1), eval_dataset=image_rows(6))
    mixing = trainer_of(
        *(tmp_path, kd(), toy_vit(), image_rows()),
        **{"teacher": toy_vit(seed=1), "eval_dataset": image_rows(6), "eval_objective": True, **MIXING},
        **{"processing_class": OURS, "teacher_processing_class": THEIRS},
    )
    found = mixing.evaluate()
    assert found["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"])
    given: dict[str, Any] = {"teacher": toy_vit(seed=1), "eval_dataset": image_rows(6), "eval_objective": True}
    again = trainer_of(tmp_path, kd(), toy_vit(), image_rows(), **given)
    assert found["eval_loss/kd"] != pytest.approx(again.evaluate()["eval_loss/kd"], rel=1e-3)


# ---- what cannot be mixed ----


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("dkd", r"'kd' \(DecoupledLoss\) goes by the class of each row"),
        ("cskd", "goes by the class of each row"),
        ("crd", "the memory would hold what no row is"),
        ("l2t_ww", "learns how to teach from whole rows"),
    ],
)
def test_losses_that_mixed_images_mislead_are_refused(objective: str, message: str, tmp_path: Path) -> None:
    """Each would train without an error, on targets of images that are not there."""
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, objective, toy_vit(), image_rows(), teacher=toy_vit(seed=1), **MIXING)


def test_text_and_functions_of_one_label_are_refused(tmp_path: Path) -> None:
    """There is no image to mix; and a user's function cannot know that there are two labels."""
    with pytest.raises(ValueError, match="a bert reads text"):
        trainer_of(tmp_path, kd(), **MIXING)
    given = {"teacher": toy_vit(), "compute_loss_func": lambda outputs, labels, num_items_in_batch: outputs.loss}
    with pytest.raises(ValueError, match="compute_loss_func would be given those of one"):
        trainer_of(tmp_path, "kd", toy_vit(), image_rows(), **given, **MIXING)
    trainer_of(tmp_path, kd(), toy_vit(), image_rows(), **given, **MIXING)  # without TaskLoss it is not called


# ---- whose images a teacher is given ----


def test_a_teacher_by_name_brings_its_processor(tmp_path: Path) -> None:
    """Nobody should have to name it twice; and without the student's it is not known what to convert."""
    folder = tmp_path / "teacher"
    in_other_pixels(toy_vit()).save_pretrained(folder)
    bare = trainer_of(tmp_path, kd(), toy_vit(), image_rows(), teacher=str(folder))  # no processor is beside it
    bare.train()
    assert logged(bare)[0]["loss/kd"] > 1e-3
    THEIRS.save_pretrained(folder)
    trainer = trainer_of(
        tmp_path, kd(), toy_vit(), image_rows(), teacher=str(folder), processing_class=OURS, learning_rate=0.0
    )
    trainer.train()
    assert logged(trainer)[0]["loss/kd"] == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match=r"the student's is not.*Pass processing_class="):
        trainer_of(tmp_path, kd(), toy_vit(), image_rows(), teacher=str(folder))


def test_images_of_the_teachers_own_are_not_converted(tmp_path: Path) -> None:
    """A column teacher_pixel_values is already what its processor gave."""
    rows = image_rows()
    rows = rows.add_column("teacher_pixel_values", (torch.tensor(rows["pixel_values"]) + 1).tolist())
    teacher = Watching(toy_vit(seed=1))
    given = {"teacher": teacher, "processing_class": OURS, "teacher_processing_class": THEIRS}
    seen: list[Tensor] = []
    teacher.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    trainer_of(tmp_path, kd(), toy_vit(), rows, **given).train()
    torch.testing.assert_close(seen, [images + 1 for images in teacher.seen])
    of_one_channel = {"pixel_values": rows["pixel_values"], "teacher_pixel_values": torch.zeros(8, 1, 8, 8).tolist()}
    own = Dataset.from_dict(of_one_channel)  # nothing need be known of how they were made
    trainer_of(tmp_path, kd(), toy_vit(), own, teacher=toy_vit(num_channels=1), processing_class=OURS).train()


def test_a_grey_student_learns_from_colours(tmp_path: Path) -> None:
    """Three equal channels are what the teacher's own processor makes of a grey image."""
    grey = image_rows().map(lambda row: {"pixel_values": row["pixel_values"][:1]})
    processor = ViTImageProcessorPil(size=8, image_mean=[0.5], image_std=[0.5])
    teacher = Watching(toy_vit(seed=1))
    given = {"teacher": teacher, "processing_class": processor, "teacher_processing_class": OURS}
    trainer_of(tmp_path, kd(), toy_vit(num_channels=1), grey, **given, **MIXING).train()
    assert teacher.seen[0].shape == (4, 3, 8, 8)
    assert torch.equal(teacher.seen[0][:, 0], teacher.seen[0][:, 2])


def test_a_teacher_of_another_size_is_given_it(tmp_path: Path) -> None:
    """Where only positions tie it to a size, that is what it needs; its mean and std are taken to be the student's."""
    teacher = Watching(toy_vit(image_size=12, seed=1))
    trainer_of(tmp_path, kd(), toy_vit(), image_rows(), teacher=teacher, processing_class=OURS).train()
    assert teacher.seen[0].shape == (4, 3, 12, 12)
    without = Watching(toy_vit(image_size=12, seed=1))
    trainer_of(tmp_path, kd(), toy_resnet(), image_rows(), teacher=without).train()
    assert without.seen[0].shape == (4, 3, 12, 12)
    same = Watching(toy_resnet(seed=1))  # which names no size
    trainer_of(tmp_path, kd(), toy_vit(), image_rows(), teacher=same).train()
    assert same.seen[0].shape == (4, 3, 8, 8)


@pytest.mark.parametrize("teacher", [toy_swin(image_size=12), toy_vit(num_channels=1)])
def test_a_teacher_of_unknown_images_is_refused(teacher: PreTrainedModel, tmp_path: Path) -> None:
    """Swin would run on any size and know less; a grey teacher's mean is not one of the student's three."""
    with pytest.raises(ValueError, match="teacher_processing_class=AutoImageProcessor"):
        trainer_of(tmp_path, kd(), toy_vit(), image_rows(), teacher=teacher, processing_class=OURS)


def test_a_processor_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Left unused, it would look as if it had been heeded."""
    with pytest.raises(TypeError, match="must be the teacher's image processor, got dict"):
        trainer_of(tmp_path, kd(), toy_vit(), image_rows(), teacher=toy_vit(), teacher_processing_class={})


@pytest.mark.parametrize("images", [torch.zeros(8, 3, 16, 16), torch.zeros(8, 1, 8, 8)])
def test_images_that_the_student_cannot_take_are_explained(images: Tensor, tmp_path: Path) -> None:
    """In training and in evaluation: what was expected, what came, what to do."""
    rows = Dataset.from_dict({"pixel_values": images.tolist(), "labels": [0] * 8})
    trainer = trainer_of(tmp_path, Objective(task=TaskLoss()), toy_vit(), rows, teacher=None, eval_dataset=rows)
    message = r"the student takes pixel_values \(B, 3, 8, 8\), got \(4, .*Prepare the data"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    with pytest.raises(ValueError, match=message):
        trainer.evaluate()
