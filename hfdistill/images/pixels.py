"""Pixels of two image processors: what the student reads, turned into what the teacher was made for.

A consistent teacher sees the student's image: the same crop, mixed the same way. It need not see the same numbers: two
models may differ in mean and standard deviation, in size, in the order or number of their channels. Nothing here opens
an image file; see the processors of transformers for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfdistill.anatomy import base_model

if TYPE_CHECKING:
    from transformers import ImageProcessingMixin

_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601: what image libraries take for grey
_UNDERSTOOD = ("resize", "center_crop", "rescale", "normalize", "convert_rgb", "flip_channel_order", "reduce_labels")


@dataclass(frozen=True)
class PixelStandard:
    """What an image processor makes of an image whose colours x go from 0 to 1: (x - mean) / std, of one size.

    Args:
        mean: of each channel, or one for all; 0 to 1 is black to white, whatever the processor's own units.
        std: likewise.
        size: (height, width) in pixels, or None where images keep their own.
        channels: 3 (red, green, blue), 1 (grey), or others that have no names.
        blue_first: the channels stand in the order blue, green, red.

    Raises:
        ValueError: mean and std that do not fit the channels; a std that is not above 0.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None
    channels: int = 3
    blue_first: bool = False

    def __post_init__(self) -> None:
        if not {len(self.mean), len(self.std)} <= {1, self.channels}:
            raise ValueError(
                f"expected a mean and std of each of {self.channels} channels or one for all, got {self.mean} and "
                f"{self.std}. Give the image processor an image_mean and image_std of as many numbers as its model "
                "has channels (config.num_channels)."
            )
        if min(self.std) <= 0:
            raise ValueError(f"expected a std above 0, got {self.std}: pixels are divided by it.")

    @classmethod
    def of(cls, processor: ImageProcessingMixin, channels: int = 3) -> PixelStandard:
        """Read the standard of an image processor of transformers, of any backend.

        The size is that of its crop, or else of its resizing; for `shortest_edge` alone a square of that edge.

        Args:
            processor: ViTImageProcessor and its kin.
            channels: that its model takes.

        Raises:
            ValueError: it does something else to pixels (padding, splitting into tiles, colour clusters).
        """
        given = {name: value for name, value in processor.to_dict().items() if value is not None}
        done = {name.removeprefix("do_") for name, value in given.items() if name.startswith("do_") and value}
        if not done <= set(_UNDERSTOOD):
            raise ValueError(
                f"{type(processor).__name__} does {sorted(done - set(_UNDERSTOOD))} to images, which cannot be undone "
                f"or done on a batch of pixels. {_OWN_COLUMN}"
            )
        factor = 255.0 * (given.get("rescale_factor", 1 / 255) if "rescale" in done else 1.0)
        offset = 1.0 if "rescale" in done and given.get("rescale_offset") else 0.0
        means, stds = _numbers(given.get("image_mean", 0.0)), _numbers(given.get("image_std", 1.0))
        times = ("normalize" in done) + bool(given.get("include_top"))  # EfficientNet's divides once more for its head
        mean = means if "normalize" in done else (0.0,)
        std = tuple(number**times for number in stds) if times else (1.0,)
        return cls(
            tuple((number + offset) / factor for number in mean),
            tuple(number / factor for number in std),
            _size(given, done),
            channels,
            "flip_channel_order" in done,
        )


@dataclass(frozen=True)
class PixelConversion:
    """Turns the student's `pixel_values` into the teacher's.

    x = pixels · std_s + mean_s, then grey from colour (0.299 R + 0.587 G + 0.114 B) or colour from grey (the same
    three times), then resized, then (x - mean_t) / std_t. Resizing is bicubic with antialiasing, as image libraries do
    it (a = -0.5), and clamped to what an image can hold: 0 to 1, or the image's own range where that is wider. Where
    nothing differs the given tensor itself is returned.

    Args:
        student: what its images were prepared to.
        teacher: what the teacher's are to be like.

    Raises:
        ValueError: numbers of channels that differ and are not 1 and 3.
    """

    student: PixelStandard
    teacher: PixelStandard

    def __post_init__(self) -> None:
        channels = (self.student.channels, self.teacher.channels)
        if len({*channels}) == 2 and {*channels} != {1, 3}:
            raise ValueError(
                f"expected the same number of channels on both sides, or grey (1) and colour (3), got {channels[0]} "
                f"(student) and {channels[1]} (teacher): what stands in other channels is not known. {_OWN_COLUMN}"
            )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Convert images (B, C_student, H, W) to (B, C_teacher, H', W'), in their dtype.

        Raises:
            ValueError: of another shape.
        """
        ours, theirs = self.student, self.teacher
        if pixels.dim() != 4 or pixels.shape[1] != ours.channels:
            raise ValueError(
                f"expected pixel_values (B, {ours.channels}, H, W) as the student takes them, got "
                f"{tuple(pixels.shape)}. They are converted for the teacher; let the data collator stack images of "
                f"{ours.channels} channels."
            )
        size = theirs.size or (pixels.shape[2], pixels.shape[3])
        same_colours = (ours.mean, ours.std, ours.channels, ours.blue_first) == (
            *(theirs.mean, theirs.std, theirs.channels, theirs.blue_first),
        )
        if same_colours and size == pixels.shape[2:]:
            return pixels
        images = pixels if pixels.dtype == torch.float64 else pixels.float()
        images = _recoloured(images * _per_channel(ours.std, images) + _per_channel(ours.mean, images), ours, theirs)
        if size != pixels.shape[2:]:
            images = _resized(images, size)
        return ((images - _per_channel(theirs.mean, images)) / _per_channel(theirs.std, images)).to(pixels.dtype)


@dataclass(frozen=True)
class ImageShape:
    """The images that a model's configuration names.

    Args:
        channels: None where it does not say.
        size: (height, width), or None where it does not say.
    """

    channels: int | None
    size: tuple[int, int] | None

    @classmethod
    def of(cls, model: nn.Module) -> ImageShape:
        """Read the configuration of an image model (of CLIP and its kin that of the image tower)."""
        config: Any = base_model(model).config
        whole = config.to_dict()
        given = whole.get("vision_config") or whole
        size = given.get("image_size")
        pair = (size, size) if isinstance(size, int) else None if size is None else (int(size[0]), int(size[1]))
        return cls(given.get("num_channels"), pair)

    def __str__(self) -> str:
        height, width = self.size or ("H", "W")
        return f"(B, {self.channels or 'C'}, {height}, {width})"

    def holds(self, pixels: Tensor) -> bool:
        """Whether images are as the configuration says, as far as it says."""
        return (
            pixels.dim() == 4
            and self.channels in (None, pixels.shape[1])
            and self.size in (None, (pixels.shape[2], pixels.shape[3]))
        )


@contextmanager
def explained_shapes(model: nn.Module, inputs: Mapping[str, Any], role: str) -> Iterator[None]:
    """Within this context an image model's refusal of images of another shape says what it takes, and what to do.

    Models that take images of any size (Swin, ConvNeXt, DINOv2) are not held to the size that they were made for.

    Args:
        model: whose forward pass is made.
        inputs: that it is given.
        role: "student" or "teacher".

    Raises:
        ValueError: the pass failed, and the images are not those of the model's configuration.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        pixels, shape = inputs.get("pixel_values"), ImageShape.of(model)
        if not isinstance(pixels, Tensor) or shape.holds(pixels):
            raise
        advice = {
            "student": "Prepare the data with the student's image processor, or make the student for these images "
            "(image_size and num_channels of its configuration; interpolated positions for a trained one).",
            "teacher": f"Pass teacher_processing_class=AutoImageProcessor.from_pretrained(...) of the teacher and "
            f"processing_class=... of the student, so that images are converted. {_OWN_COLUMN}",
        }
        raise ValueError(
            f"the {role} takes pixel_values {shape}, got {tuple(pixels.shape)}, and failed on them: {error} "
            f"{advice[role]}"
        ) from error


_OWN_COLUMN = "Or prepare the teacher's images yourself, as a column teacher_pixel_values of the data set."


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(float(number) for number in value) if isinstance(value, list | tuple) else (float(value),)


def _size(given: Mapping[str, Any], done: set[str]) -> tuple[int, int] | None:
    """(height, width) of what a processor gives, None where it leaves images as large as they are."""
    name = "crop_size" if "center_crop" in done else "size" if "resize" in done else None
    if name is None:
        return None
    size = given.get(name)
    size = {"height": size, "width": size} if isinstance(size, int) else dict(size or {})
    size = {side: length for side, length in size.items() if length is not None}
    if size.keys() == {"shortest_edge"}:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    if size.keys() != {"height", "width"}:
        raise ValueError(
            f"expected {name} of an image processor as height and width, or shortest_edge, got {size}. One size for "
            f"all images must be known to convert a batch. {_OWN_COLUMN}"
        )
    return int(size["height"]), int(size["width"])


def _per_channel(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    return like.new_tensor(numbers).view(-1, 1, 1)  # (C, 1, 1)


def _recoloured(images: Tensor, ours: PixelStandard, theirs: PixelStandard) -> Tensor:
    """The channels as the teacher has them, (B, C, H, W)."""
    if ours.blue_first:
        images = images.flip(1)
    if (ours.channels, theirs.channels) == (3, 1):
        images = (images * _per_channel(_LUMINANCE, images)).sum(1, keepdim=True)  # (B, 1, H, W)
    if (ours.channels, theirs.channels) == (1, 3):
        images = images.expand(-1, 3, -1, -1)
    return images.flip(1) if theirs.blue_first else images


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic, between the darkest and the brightest that an image can hold."""
    lowest = images.amin((1, 2, 3), keepdim=True).clamp(max=0)  # (B, 1, 1, 1)
    highest = images.amax((1, 2, 3), keepdim=True).clamp(min=1)
    # without antialiasing torch enlarges by another kernel (a = -0.75) than image libraries do
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(lowest, highest)
