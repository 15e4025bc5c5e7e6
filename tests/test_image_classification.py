"""The image recipe from end to end on toy images: teacher trained, arms compared, records written and found again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from safetensors.numpy import load_file
from toy_images import SHAPES, SIDE, save_classifier, write_shapes
from toy_models import toy_resnet, toy_swin, toy_vit
from transformers import AutoImageProcessor, AutoModelForImageClassification, DeiTImageProcessorPil

from hfdistill import DistillationTrainer, DistillationTrainingArguments, ImageClassification, distil_image_classifier

NAMES = tuple(SHAPES)


def arguments(folder: Path, **changes: Any) -> DistillationTrainingArguments:
    """A few steps on the CPU, with the learning rate of training from scratch."""
    chosen = {
        "max_steps": 3,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 12,
        "per_device_eval_batch_size": 8,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return DistillationTrainingArguments(output_dir=str(folder), **(chosen | changes))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders."""
    return write_shapes(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of these classes with random weights."""
    return save_classifier(tmp_path_factory.mktemp("teacher"), names=NAMES)


def recipe(images: Path, **changes: Any) -> ImageClassification:
    """Two layers of a teacher, one arm."""
    return ImageClassification(**{"dataset": str(images), "student_layers": 2, "arms": ["kd"], **changes})


def no_training(trainer: DistillationTrainer, **_: Any) -> None:
    """In the place of DistillationTrainer.train, where nothing is left to train."""
    pytest.fail(f"trained again: {Path(str(trainer.args.output_dir)).name}")


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageClassification, Path]:
    """A whole run: a teacher from random weights, control, kd and deit with a distillation token."""
    folder = tmp_path_factory.mktemp("run")
    body = save_classifier(folder / "body")
    described = recipe(
        images,
        teacher_body=str(body),
        teacher_epochs=8,
        teacher_learning_rate=3e-3,
        student_distillation_token=True,
        arms=["control", "kd", "deit"],
        augmentation="crop_flip",
        seeds=[0, 1],
    )
    distil_image_classifier(described, arguments(folder / "out"))
    return described, folder / "out"


def test_a_run_ends_in_a_table_and_a_taught_teacher(finished: tuple[ImageClassification, Path]):
    """What the recipe promises: a teacher that has learnt, every arm beside it, classes by their names."""
    _, out = finished
    table = (out / "results.md").read_text()
    assert [f"| {arm} " in table for arm in ("teacher", "control", "kd", "deit")] == [True] * 4
    found = json.loads((out / "results.json").read_text())
    assert found["teacher"]["metrics"][0]["accuracy"] > 0.6  # of three classes
    assert found["labels"] == list(NAMES)
    assert found["protocol"]["task"] == "image-classification"
    assert found["protocol"]["data"]["evaluation_split"] == "validation"
    assert (found["protocol"]["data"]["train_rows"], found["protocol"]["data"]["augmentation"]) == (24, "crop_flip")
    assert [latency["batch_size"] for latency in found["arms"][0]["latencies"]] == [1, 8, 32]


@pytest.mark.parametrize("arm", ["control", "deit"])
def test_predictions_are_the_deployed_students_row_by_row(
    finished: tuple[ImageClassification, Path], images: Path, arm: str
):
    """What is measured is what a user gets from the saved folder: no augmentation, both heads, rows in their order."""
    _, out = finished
    student = AutoModelForImageClassification.from_pretrained(out / arm / "seed-1").eval()
    assert type(student).__name__ == "DeiTForImageClassificationWithTeacher"
    processor = AutoImageProcessor.from_pretrained(out / arm / "seed-1")
    rows = load_dataset("imagefolder", data_dir=str(images), split="validation")
    with torch.no_grad():
        expected = student(**processor([row["image"] for row in rows], return_tensors="pt")).logits.numpy()
    predicted = load_file(out / arm / "seed-1" / "predictions.safetensors")["validation"]
    np.testing.assert_allclose(predicted, expected, atol=1e-5)
    known = load_file(out / "evaluation.safetensors")
    assert known["validation/labels"].tolist() == rows["label"][:]
    results = json.loads((out / "results.json").read_text())["arms"]
    score = next(result for result in results if result["name"] == arm)["metrics"][1]["accuracy"]
    assert score == pytest.approx((predicted.argmax(1) == known["validation/labels"]).mean())


def test_every_student_has_its_records(finished: tuple[ImageClassification, Path]):
    """Report and card are written from these files alone."""
    _, out = finished
    for arm in ("control", "kd", "deit"):
        for seed in (0, 1):
            folder = out / arm / f"seed-{seed}"
            wanted = {"model.safetensors", "preprocessor_config.json", "predictions.safetensors", "README.md"}
            assert {*wanted, "log_history.json", "results.json"} <= {path.name for path in folder.iterdir()}
            assert any("loss" in line for line in json.loads((folder / "log_history.json").read_text()))
            told = json.loads((folder / "results.json").read_text())
            assert {result["name"] for result in told["arms"]} == {"control", arm}
            assert set(told["protocol"]["arms"]) == {"control", arm}
            assert str(out.parent) not in (folder / "results.json").read_text()
    assert load_file(out / "sample_batch.safetensors")["pixel_values"].shape == (12, 3, SIDE, SIDE)


def test_a_finished_run_is_found_again(
    finished: tuple[ImageClassification, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A broken-off experiment goes on where it stopped; the figures of what is there stay the same."""
    described, out = finished
    before = json.loads((out / "results.json").read_text())
    monkeypatch.setattr(DistillationTrainer, "train", no_training)
    again = distil_image_classifier(described, arguments(out))
    for arm, old in zip(again.arms, before["arms"], strict=True):
        assert (arm.metrics, arm.kl, arm.seconds) == (old["metrics"], old["kl"], old["seconds"])
    copytree(out, tmp_path, dirs_exist_ok=True)
    with pytest.raises(pytest.fail.Exception, match="trained again: teacher"):  # which saw other images
        distil_image_classifier(replace(described, augmentation="flip"), arguments(tmp_path))


def test_augmentation_is_part_of_the_run(images: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A student that saw other images must not be taken for this one."""
    distil_image_classifier(recipe(images, teacher=str(teacher), arms=["control"]), arguments(tmp_path))
    monkeypatch.setattr(DistillationTrainer, "train", no_training)
    distil_image_classifier(recipe(images, teacher=str(teacher), arms=["control"]), arguments(tmp_path))
    other = recipe(images, teacher=str(teacher), arms=["control"], random_erasing=0.5)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        distil_image_classifier(other, arguments(tmp_path))


def test_a_student_of_another_family_with_a_processor_of_its_own(images: Path, tmp_path: Path):
    """A small CNN learns from a larger ViT: each is given the images as it was made for them."""
    teacher = save_classifier(tmp_path / "t", toy_vit(image_size=32), NAMES, size={"height": 32, "width": 32})
    student = save_classifier(tmp_path / "s", toy_resnet(classes=5), image_mean=[0.2] * 3, image_std=[0.3] * 3)
    described = recipe(images, teacher=str(teacher), student=str(student), student_layers=None)
    found = distil_image_classifier(described, arguments(tmp_path / "out"))
    kept = load_file(tmp_path / "out" / "sample_batch.safetensors")
    assert kept["pixel_values"].shape[2:] == (SIDE, SIDE)
    model = AutoModelForImageClassification.from_pretrained(found.folders["kd"][0])
    assert model.config.id2label == dict(enumerate(NAMES))
    rows = load_dataset("imagefolder", data_dir=str(images), split="validation")
    pixels = AutoImageProcessor.from_pretrained(teacher)([row["image"] for row in rows], return_tensors="pt")
    with torch.no_grad():
        expected = AutoModelForImageClassification.from_pretrained(teacher).eval()(**pixels).logits.numpy()
    known = load_file(tmp_path / "out" / "evaluation.safetensors")
    np.testing.assert_allclose(known["validation/teacher_logits"], expected, atol=1e-5)


def test_a_teacher_in_stages(images: Path, tmp_path: Path):
    """Swin is trained from random weights as any other, and teaches a student that is given."""
    body = save_classifier(tmp_path / "t", toy_swin(image_size=SIDE, patch_size=2))
    student = save_classifier(tmp_path / "s")
    described = recipe(
        images, teacher_body=str(body), teacher_epochs=1, student=str(student), student_layers=None, arms=["kd"]
    )
    (arm,) = distil_image_classifier(described, arguments(tmp_path / "out")).arms
    assert 0 <= arm.metrics[0]["accuracy"] <= 1


def test_grey_images_for_a_grey_model(tmp_path: Path):
    """A model of one channel reads grey, and a data set in colour is turned grey for it."""
    images = write_shapes(tmp_path / "images", mode="L")
    with Image.open(next(images.rglob("*.png"))) as image:
        assert image.mode == "L"
    grey = {"image_mean": [0.5], "image_std": [0.5]}
    teacher = save_classifier(tmp_path / "t", toy_vit(image_size=SIDE, num_channels=1), NAMES, **grey)
    distil_image_classifier(recipe(images, teacher=str(teacher), student_layers=1), arguments(tmp_path / "out"))
    assert load_file(tmp_path / "out" / "sample_batch.safetensors")["pixel_values"].shape[1] == 1


def test_grey_images_for_a_model_of_colour(teacher: Path, tmp_path: Path):
    """Of three equal channels every colour model can make something; the batch must not fail on one."""
    images = write_shapes(tmp_path / "images", mode="L")
    distil_image_classifier(recipe(images, teacher=str(teacher)), arguments(tmp_path / "out"))
    pixels = load_file(tmp_path / "out" / "sample_batch.safetensors")["pixel_values"]
    assert (pixels[:, 0] == pixels[:, 2]).all()


def test_classes_in_another_order_are_refused_and_can_be_put_right(images: Path, tmp_path: Path):
    """The teacher's first class would be learnt as another; renumbered rows make its figures right."""
    order = ["Triangle", "circle", "square"]
    teacher = save_classifier(tmp_path / "t", names=order)
    described = recipe(images, teacher=str(teacher), arms=["control"])
    with pytest.raises(ValueError, match=r"same classes in another order.*label_order=\['triangle', 'circle'"):
        distil_image_classifier(described, arguments(tmp_path / "out"))
    described.label_order = ["triangle", "circle", "square"]
    found = distil_image_classifier(described, arguments(tmp_path / "out"))
    assert found.labels == order
    labels = load_file(tmp_path / "out" / "evaluation.safetensors")["validation/labels"]
    assert sorted(labels.tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    assert labels[0] == 1  # circles come first in the folder


def test_a_teacher_without_names_gets_those_of_the_data(images: Path, tmp_path: Path):
    """LABEL_0 tells nobody what a student has seen; the data knows."""
    teacher = save_classifier(tmp_path / "t")
    found = distil_image_classifier(recipe(images, teacher=str(teacher)), arguments(tmp_path / "out"))
    assert found.labels == list(NAMES)
    config = AutoModelForImageClassification.from_pretrained(found.folders["kd"][0]).config
    assert (config.id2label, config.label2id["square"]) == (dict(enumerate(NAMES)), 1)


def test_images_that_were_skipped_are_in_the_record(teacher: Path, tmp_path: Path):
    """A result on fewer images than the data set has must say so; without a word from the user it is refused."""
    images = write_shapes(tmp_path / "images")
    (images / "train" / "square" / "0.png").write_bytes(b"not an image")
    described = recipe(images, teacher=str(teacher), arms=["control"])
    with pytest.raises(ValueError, match=r"1 of 24 images of split train.*square"):
        distil_image_classifier(described, arguments(tmp_path / "out"))
    described.on_corrupt = "skip"
    data = distil_image_classifier(described, arguments(tmp_path / "out")).protocol["data"]
    assert (data["skipped"], data["train_rows"]) == ({"train": 1}, 23)


def test_classes_of_other_names_are_refused_unless_said_to_be_the_same(images: Path, tmp_path: Path):
    """A teacher of cats teaches nothing about circles, unless somebody knows better."""
    teacher = save_classifier(tmp_path / "t", names=["cat", "dog", "cow"])
    with pytest.raises(ValueError, match=r"name their classes differently.*same_label_order"):
        distil_image_classifier(recipe(images, teacher=str(teacher)), arguments(tmp_path / "out"))
    told = recipe(images, teacher=str(teacher), arms=["control"], same_label_order=True)
    assert distil_image_classifier(told, arguments(tmp_path / "out")).labels == ["cat", "dog", "cow"]


def test_another_image_size_changes_the_processor_too(images: Path, teacher: Path, tmp_path: Path):
    """A student of smaller images with the teacher's processor could not read what that makes."""
    described = recipe(images, teacher=str(teacher), student_image_size=8)
    found = distil_image_classifier(described, arguments(tmp_path / "out"))
    processor = AutoImageProcessor.from_pretrained(found.folders["kd"][0])
    assert (processor.size["height"], processor.size["width"]) == (8, 8)
    assert AutoModelForImageClassification.from_pretrained(found.folders["kd"][0]).config.image_size == 8
    assert load_file(tmp_path / "out" / "sample_batch.safetensors")["pixel_values"].shape[2:] == (8, 8)


def test_a_crop_keeps_its_share_of_the_image(images: Path, tmp_path: Path):
    """DeiT resizes to 256 and crops 224: a student of half the size resizes to 128 and crops 112."""
    teacher = save_classifier(tmp_path / "t", names=NAMES)
    DeiTImageProcessorPil(size={"height": 32, "width": 32}, crop_size={"height": 16, "width": 16}).save_pretrained(
        teacher
    )
    described = recipe(images, teacher=str(teacher), student_image_size=8, arms=["control"])
    found = distil_image_classifier(described, arguments(tmp_path / "out"))
    processor = AutoImageProcessor.from_pretrained(found.folders["control"][0])
    assert (processor.size["height"], processor.crop_size["width"]) == (16, 8)


def test_a_model_without_an_image_processor_is_told(images: Path, tmp_path: Path):
    """Transformers' own message is about file names; what is missing is a size and a mean."""
    toy_vit().save_pretrained(tmp_path / "t")
    with pytest.raises(ValueError, match=r"has no image processor.*Save one beside the model"):
        distil_image_classifier(recipe(images, teacher=str(tmp_path / "t")), arguments(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": None}, "say what to train on"),
        ({"teacher": None}, "a teacher is needed"),
        ({"student_layers": None}, "say what the student is"),
        ({"augmentation": "crop"}, "augmentation must be one of"),
        ({"random_erasing": 2.0}, "random_erasing from 0 to 1"),
        ({"on_corrupt": "ignore"}, "on_corrupt must be"),
        ({"student": "s", "student_patch_size": 4}, "student_patch_size"),
    ],
)
def test_a_bad_description_is_refused_at_once(changes: dict[str, Any], said: str):
    """Before anything is loaded, let alone trained."""
    with pytest.raises(ValueError, match=said):
        ImageClassification(**{"dataset": "d", "teacher": "t", "student_layers": 2, **changes})
