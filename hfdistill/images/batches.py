"""From rows with images to batches of pixels: as the image processor makes them, augmented in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor

from hfdistill.images.augmentation import Augmentation, draws_of
from hfdistill.images.decoding import decode_image, require_pillow

if TYPE_CHECKING:
    from PIL.Image import Image

_RAW = {"do_rescale": False, "do_normalize": False}
_AS_IS = {**_RAW, "do_resize": False, "do_center_crop": False}


@dataclass
class ImageCollator:
    """Make a batch of rows {"image", "labels"}: pixel_values (B, C, H, W) float32 and labels (B,).

    Without augmentation the pixels are exactly `processor(images)`; with it they are changed between resizing and
    normalising. Teacher and student are given the same batch, so both see the same piece of the same image.

    What is drawn depends on nothing but the rows of the batch and their order: a resumed run sees the same images as
    the unbroken one, with data loader workers or without, and dropout is not disturbed. Epochs differ because rows are
    shuffled; with batches of one row, or rows in fixed order, every epoch would show the same.

    Args:
        processor: the student's; it resizes, crops, rescales and normalises.
        augmentation: name of a policy, see `Augmentation`; leave it "none" for evaluation.
        random_erasing: share of images of which a part is erased, 0 to 1.
        channels: of the model: 3, or 1 for grey.
        operations: of RandAugment, per image.
        magnitude: of RandAugment, above 0 and below 30.

    Raises:
        ImportError: Pillow is missing, or kornia where something is augmented.
        ValueError: an unknown policy, a number out of range, a processor of another number of channels, or one that
            resizes to no fixed size where the policy needs one.
    """

    processor: BaseImageProcessor
    augmentation: str = "none"
    random_erasing: float = 0.0
    channels: int = 3
    operations: int = 2
    magnitude: float = 9.0

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(
                f"channels must be 3 (RGB) or 1 (grey), got {self.channels}: files hold no other kind of image. Use a "
                "model with num_channels 3 or 1."
            )
        require_pillow()
        self._augmentation = Augmentation(
            self.augmentation, self.random_erasing, self.channels, self.operations, self.magnitude
        )
        self._black, self._range = self._tones()
        self._size = self._fixed_size()
        self._idle = self._size is not None and self._leaves_alone(self._size)
        if self._augmentation.cuts(self._size) and self._size is None:
            raise ValueError(
                f"{self.augmentation} must know how large its images are to be, but the image processor resizes to no "
                "fixed size. Give it one: processor.size = {'height': ..., 'width': ...} and do_resize=True."
            )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch; columns of numbers beside image and label are kept.

        Raises:
            ValueError: no image column, an image that cannot be decoded, images of different size, a column that
                holds no numbers.
        """
        if "image" not in rows[0]:
            raise ValueError(
                f"expected rows with a column 'image', got {sorted(rows[0])}. The Trainer drops columns that the "
                "model does not name; train with remove_unused_columns=False."
            )
        images = [self._decoded(row["image"], number) for number, row in enumerate(rows)]
        if self._augmentation.changes:
            with draws_of(_sources(rows)):
                pixels = self._augmented(images)
        else:
            pixels = self._processed(images)
        batch = {"pixel_values": pixels}
        for name in rows[0]:
            if name != "image":
                batch["labels" if name == "label" else name] = _column(name, [row[name] for row in rows])
        return batch

    def _decoded(self, image: Any, number: int) -> Image:
        try:
            return decode_image(image, self.channels)
        except ValueError as error:
            path = image.get("path") if isinstance(image, Mapping) else None
            raise ValueError(
                f"the image of row {number} of a batch{f', {path},' if path else ''} cannot be decoded ({error}). "
                "load_images finds such files before training; was the data set changed since?"
            ) from error

    def _processed(self, images: list[Image], **changes: bool) -> Tensor:
        """What the processor makes of them, (B, C, H, W)."""
        process: Any = self.processor  # its keywords are one union of types per name
        try:
            made = [torch.as_tensor(x) for x in process(images, **changes)["pixel_values"]]
        except ValueError as error:
            raise ValueError(
                f"the image processor refuses images of {self.channels} channels ({error}). Give it a mean and a "
                "standard deviation for each channel, and the collator the model's num_channels."
            ) from error
        shapes = sorted({tuple(x.shape) for x in made})
        if len(shapes) > 1 or shapes[0][0] != self.channels:
            raise ValueError(
                f"expected images of one size and {self.channels} channels from the image processor, got (C, H, W) = "
                f"{shapes[:4]}. They make no batch for this model; give the processor size={{'height': ..., 'width': "
                "...}, or a crop_size with do_center_crop=True, and the collator the model's num_channels."
            )
        return torch.stack(made)

    def _tones(self) -> tuple[Tensor, Tensor]:
        """What the processor makes of black, and of white less that; (C, 1, 1) each."""
        noise = _noise(48, 48, self.channels)
        black, white = (
            self._processed([noise.point([tone] * 256 * self.channels)])[0].flatten(1) for tone in (0, 255)
        )
        middle = black.shape[1] // 2  # (C, H W): at the edge a processor may pad
        return black[:, middle, None, None], (white - black)[:, middle, None, None]

    def _fixed_size(self) -> tuple[int, int] | None:
        """(H, W) of what the processor makes of any square image; None if that depends on the image."""
        small, large = (self._processed([_noise(side, side, self.channels)]).shape[2:] for side in (48, 80))
        return (small[0], small[1]) if small == large else None

    def _leaves_alone(self, size: tuple[int, int]) -> bool:
        """Whether an image that has the size already stays as it is, so that the processor need not be called."""
        image = _noise(*size, self.channels)
        return torch.equal(self._processed([image], **_RAW).float(), _planes([image]))

    def _augmented(self, images: list[Image]) -> Tensor:
        """Augmented and normalised, (B, C, H, W)."""
        cut = self._augmentation.cuts(self._size)
        if cut and self._size is not None:
            images = self._augmentation.cut(images, self._size, self.processor.to_dict().get("resample"))
        if self._idle and {(image.height, image.width) for image in images} == {self._size}:
            pixels = _planes(images)
        else:
            pixels = self._processed(images, **(_AS_IS if cut else _RAW))
        return torch.addcmul(self._black, self._augmentation(pixels.float() / 255, cut=cut), self._range)


def _planes(images: list[Image]) -> Tensor:
    """Pixels of images of one size as they are, (B, C, H, W) float32."""
    values = torch.from_numpy(np.stack([np.asarray(image) for image in images]))  # (B, H, W, C), or (B, H, W) of grey
    planes = values[:, None] if values.ndim == 3 else values.permute(0, 3, 1, 2)
    return planes.to(torch.float32, memory_format=torch.contiguous_format)


def _noise(height: int, width: int, channels: int) -> Image:
    """An image that stays the same only where nothing is done to it."""
    from PIL.Image import fromarray

    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return fromarray(values[..., 0] if channels == 1 else values)


def _sources(rows: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
    """What tells the images of the rows apart, decoded or not."""
    for row in rows:
        image = row["image"]
        if isinstance(image, Mapping):
            yield image.get("bytes") or str(image.get("path")).encode()
        else:
            yield image.tobytes()


def _column(name: str, values: Sequence[Any]) -> Tensor:
    try:
        return torch.stack(list(values)) if isinstance(values[0], Tensor) else torch.tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"column {name!r} holds no numbers of one shape ({error}), so it makes no batch. Remove it from the data "
            "set, or encode it: dataset.class_encode_column(...)."
        ) from error
