"""Distil an image classifier, from a description that a file or the command line can give.

`ImageClassification` says what: the images, the teacher (or what to train into one), the student, the arms.
`distil_image_classifier` does it: data, teacher, an Experiment over arms and seeds, results.json and results.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from hfdistill.arguments import DistillationTrainingArguments
from hfdistill.classification import (
    Classification,
    ClassificationData,
    Inputs,
    distil_classifier,
    prepared_experiment,
)
from hfdistill.evaluation import Array
from hfdistill.experiment import Comparison, Experiment
from hfdistill.images.augmentation import Augmentation
from hfdistill.images.batches import ImageCollator
from hfdistill.images.rows import load_images
from hfdistill.model_loading import check_model_name, explained_loading


@dataclass
class ImageClassification(Classification):
    """What to distil; the training itself is described by DistillationTrainingArguments.

    Args:
        dataset: hub name of a data set of images, folder of parquet files, or folder of one folder per class.
        image_column: column of the images; None: found.
        label_column: column of the classes; None: found.
        label_order: names of the classes in the order of the teacher's outputs, where the data has another.
        evaluation_split: split that is measured; None: validation, else test, else a part of the training rows.
        augmentation: how training images are changed: none, flip, crop_flip, resized_crop_flip, randaugment.
        random_erasing: share of the training images of which a part is erased, 0 to 1.
        on_corrupt: what to do about images that cannot be decoded: refuse, or skip.
        student_patch_size: side of the patches of a student that is cut from the teacher, in pixels.
        student_image_size: side of the images that it reads, in pixels.
        student_distillation_token: give it DeiT's second head, which learns from the teacher alone.

    Teacher, student and arms are described as `Classification` says.

    Raises:
        ValueError: what is given does not describe images, a teacher or a student.
        ImportError: an augmentation needs kornia.
    """

    task_tag: ClassVar[str] = "image-classification"
    auto_model: ClassVar[Any] = AutoModelForImageClassification

    dataset: str | None = field(default=None, metadata={"help": "Hub name, or folder of parquet files or of classes."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; None: found."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the classes; None: found."})
    label_order: list[str] = field(default_factory=list, metadata={"help": "Classes in the teacher's order."})
    evaluation_split: str | None = field(default=None, metadata={"help": "Split that is measured; None: found."})
    augmentation: str = field(
        default="none", metadata={"help": "none, flip, crop_flip, resized_crop_flip or randaugment."}
    )
    random_erasing: float = field(default=0.0, metadata={"help": "Share of training images partly erased."})
    on_corrupt: str = field(default="refuse", metadata={"help": "Images that cannot be decoded: refuse or skip."})
    student_patch_size: int | None = field(default=None, metadata={"help": "Side of the student's patches."})
    student_image_size: int | None = field(default=None, metadata={"help": "Side of the images it reads."})
    student_distillation_token: bool = field(default=False, metadata={"help": "Give it DeiT's second head."})

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        if self.dataset is None:
            raise ValueError(
                "say what to train on: dataset=..., the hub name of a data set of images, a folder of parquet files, "
                "or a folder with one folder of images per class."
            )
        if self.on_corrupt not in ("refuse", "skip"):
            raise ValueError(f"on_corrupt must be 'refuse' or 'skip', got {self.on_corrupt!r}.")
        Augmentation(self.augmentation, self.random_erasing)
        super().__post_init__()

    def student_sizes(self) -> dict[str, Any]:
        """What a student that is cut from the teacher has of its own, as keywords of `student_from`."""
        own = {"patch_size": self.student_patch_size, "image_size": self.student_image_size}
        sizes = {name: value for name, value in own.items() if value is not None}
        token = {"distillation_token": True} if self.student_distillation_token else {}
        return super().student_sizes() | sizes | token


def distil_image_classifier(recipe: ImageClassification, args: DistillationTrainingArguments) -> Comparison:
    """Run the recipe; everything is written below `args.output_dir`.

    Args:
        recipe: what to distil.
        args: how each student is trained.

    Raises:
        ValueError: images, labels, teacher and student do not fit together.
    """
    return distil_classifier(recipe, image_experiment(recipe, args))


def image_experiment(recipe: ImageClassification, args: DistillationTrainingArguments) -> Experiment:
    """The experiment that the recipe describes: images found, teacher loaded, no student trained yet.

    Args:
        recipe: what to distil.
        args: how each student is trained; image columns are kept whatever `remove_unused_columns` says.

    Raises:
        ValueError: images, labels, teacher and student do not fit together.
    """
    args = replace(args, remove_unused_columns=False)  # no model names the column of the images
    teacher = _inputs(recipe, recipe.source, _processor(recipe.source, args), args)
    student = _inputs(recipe, recipe.student or recipe.source, _student_processor(recipe, args), args)
    with args.main_process_first(local=False, desc="looking for broken images"):  # the others take it from the cache
        images = load_images(
            str(recipe.dataset),
            image_column=recipe.image_column,
            label_column=recipe.label_column,
            label_order=recipe.label_order or None,
            evaluation_split=recipe.evaluation_split,
            on_corrupt=recipe.on_corrupt,
            channels=student.evaluation.channels,
        )
    changes = {"augmentation": recipe.augmentation, "random_erasing": recipe.random_erasing}
    data = ClassificationData(
        train=images.train,
        evaluation={images.evaluation_split: images.evaluation},
        student=student,
        teacher=teacher,
        labels=images.label_names,
        metrics=_accuracy,
        metric="accuracy",
        record={
            "name": _known_name(str(recipe.dataset)),
            **changes,
            **({"skipped": {split: len(names) for split, names in images.skipped.items()}} if images.skipped else {}),
        },
        batching={
            **changes,
            "student_processor": student.processing_class.to_dict(),
            "teacher_processor": teacher.processing_class.to_dict(),
        },
    )
    return prepared_experiment(recipe, args, data)


def _inputs(recipe: ImageClassification, model: str, processor: Any, args: DistillationTrainingArguments) -> Inputs:
    """How images become the inputs of a model: augmented in training alone."""
    with explained_loading(model, "model"):
        config = AutoConfig.from_pretrained(model, trust_remote_code=args.trust_remote_code)
    channels = config.to_dict().get("num_channels", 3)
    training = ImageCollator(processor, recipe.augmentation, recipe.random_erasing, channels=channels)
    return Inputs(processor, training, ImageCollator(processor, channels=channels))


def _processor(model: str, args: DistillationTrainingArguments, **changes: Any) -> Any:
    check_model_name(model, "model")
    try:
        return AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            model, trust_remote_code=args.trust_remote_code, **changes
        )
    except OSError as error:
        raise ValueError(
            f"{model} has no image processor, so nothing says how large its images are and how they are normalised "
            f"({error}). Save one beside the model: ViTImageProcessor(size=...).save_pretrained(folder), or of the "
            "model's own family."
        ) from error


def _student_processor(recipe: ImageClassification, args: DistillationTrainingArguments) -> Any:
    """The student's own; of a student that is cut from the teacher the teacher's, at the student's image size."""
    if recipe.student is not None:
        return _processor(recipe.student, args)
    side, processor = recipe.student_image_size, _processor(recipe.source, args)
    if side is None:
        return processor
    told = processor.to_dict()
    crop = told.get("crop_size") if told.get("do_center_crop") else None
    before = min((crop or told["size"]).values())
    sizes = {"size": {name: round(value * side / before) for name, value in told["size"].items()}}
    crops = {"crop_size": {"height": side, "width": side}} if crop else {}
    return _processor(recipe.source, args, **sizes, **crops)


def _accuracy(logits: Array, labels: Array) -> dict[str, float]:
    return {"accuracy": float((logits.argmax(axis=-1) == labels).mean())}


def _known_name(dataset: str) -> str:
    return Path(dataset).name if Path(dataset).exists() else dataset  # a path says nothing on another machine
