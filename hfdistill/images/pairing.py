"""Student and teacher of images put together: how the one's images become the other's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn
from transformers import ImageProcessingMixin

from hfdistill.anatomy import Anatomy
from hfdistill.images.pixels import ImageShape, PixelConversion, PixelStandard
from hfdistill.teachers import FrozenTeacher, Teacher


def settled_conversion(
    student: nn.Module,
    input_names: Sequence[str],
    teacher: Teacher,
    processing_class: object,
    theirs: object,
    given: object,
    trust_remote_code: bool = False,
) -> PixelConversion | None:
    """How the student's images are turned into the teacher's; None where they are the same, or there are none.

    Args:
        student: the student.
        input_names: argument names of its forward.
        teacher: the teacher, settled.
        processing_class: what prepares the student's inputs.
        theirs: the teacher's image processor, if given.
        given: the teacher as it was given; from a name its image processor is loaded where it was not given.
        trust_remote_code: run the code that comes with that image processor.

    Raises:
        ValueError: one of the processors is missing, or does what cannot be converted.
        TypeError: `theirs` is no image processor.
    """
    if not all("pixel_values" in names for names in (input_names, teacher.anatomy.input_names)):
        return None
    if not isinstance(theirs, ImageProcessingMixin | None) and "input_ids" not in input_names:
        raise TypeError(
            f"teacher_processing_class must be the teacher's image processor, got {type(theirs).__name__}. The "
            "student's images are turned into what it makes of them; load it with AutoImageProcessor.from_pretrained."
        )
    ours = processing_class if isinstance(processing_class, ImageProcessingMixin) else None
    theirs = theirs if isinstance(theirs, ImageProcessingMixin) else _loaded_processor(given, trust_remote_code)
    shapes = [ImageShape.of(model) for model in (student, *_model(teacher))]
    if theirs is None:
        return _resizing(ours, shapes, teacher.anatomy)
    if ours is None:
        raise ValueError(
            f"the teacher's image processor is known ({type(theirs).__name__}), the student's is not, so it cannot be "
            "said how the student's images differ from those that the teacher was made for. Pass "
            "processing_class=... (the student's image processor); or pass the teacher as a model, if it was trained "
            "on images just like these."
        )
    if ours.to_dict() == theirs.to_dict():
        return None
    channels = [shape.channels or 3 for shape in shapes]
    return PixelConversion(PixelStandard.of(ours, channels[0]), PixelStandard.of(theirs, channels[-1]))


def _model(teacher: Teacher) -> tuple[nn.Module, ...]:
    return (teacher.model,) if isinstance(teacher, FrozenTeacher) else ()


def _loaded_processor(given: object, trust_remote_code: bool) -> ImageProcessingMixin | None:
    """The image processor beside a teacher that was given by name; None where there is none."""
    if not isinstance(given, str | Path):
        return None
    from transformers import AutoImageProcessor  # slow to import, and text has none

    try:
        processor: ImageProcessingMixin = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            str(given), trust_remote_code=trust_remote_code
        )
    except OSError:  # a folder without preprocessor_config.json
        return None
    return processor


def _resizing(ours: ImageProcessingMixin | None, shapes: list[ImageShape], teacher: Anatomy) -> PixelConversion | None:
    """What can be done without the teacher's processor: resize, where its positions are for images of one size."""
    student, other = shapes[0], shapes[-1]
    sizes_agree = other.size in (None, student.size)
    if sizes_agree and other.channels in (None, student.channels):
        return None
    if other.channels not in (None, student.channels) or not _holds_to_one_size(teacher):
        raise ValueError(
            f"by their configurations the student takes pixel_values {student} and the teacher {other}, and how the "
            "teacher's images were prepared is not known. Shown the student's as they are it would teach worse than "
            "it knows. Pass teacher_processing_class=AutoImageProcessor.from_pretrained(...) of the teacher, and "
            "processing_class=... of the student; or prepare the teacher's images yourself, as a column "
            "teacher_pixel_values of the data set."
        )
    channels = student.channels or 3
    standard = PixelStandard(channels=channels) if ours is None else PixelStandard.of(ours, channels)
    return PixelConversion(standard, replace(standard, size=other.size))


def _holds_to_one_size(model: Anatomy) -> bool:
    """Whether positions are learnt for one size of images, which these models then ask to interpolate for another."""
    return model.grid is not None and model.stages is None and "interpolate_pos_encoding" in model.input_names
