"""Change images at random while a model trains on them: policies by name, made of kornia's operations.

Works on pixels in [0, 1], before normalisation. It makes no batches, and mixes no images with each other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL.Image import Image

AUGMENTATIONS = ("none", "flip", "crop_flip", "resized_crop_flip", "randaugment")
"""Names of the policies; `Augmentation` says what each does."""

_SMALL = 64  # pixels: up to here images fill the frame, and a twelfth of their area shows nothing any more


@dataclass(frozen=True)
class Augmentation:
    """A policy, and how strong it is.

    * "flip": left and right swapped in half of the images.
    * "crop_flip": also shifted by up to an eighth of the size in each direction, black moving in; for small images.
    * "resized_crop_flip": flipped, and cut from the original: 8 to 100 % of its area, 3:4 to 4:3, resized.
    * "randaugment": one of the last two (crop_flip up to 64 pixels), then `operations` of RandAugment for each image
      (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719), drawn from identity, auto-contrast, equalize, rotate (30
      degrees), posterize (to 4 bits), solarize (all), colour, contrast, brightness, sharpness (each 0.9 up or down),
      shear (0.3) and translate (0.45 of the size), as kornia defines them. The brackets tell full magnitude, 30 (10 in
      timm, whose m9 is 27 here). Grey images have no colour to change.

    Args:
        name: of the policy; "none" changes nothing.
        random_erasing: share of the images in which a rectangle of 2 to 33 % of the area becomes grey, 0 to 1 (Zhong
            et al. 2020, https://arxiv.org/abs/1708.04896).
        channels: 3, or 1 for grey.
        operations: of RandAugment, per image.
        magnitude: of RandAugment, the share of the full one in thirtieths; above 0 and below 30.

    Raises:
        ImportError: kornia is missing, where something is changed.
        ValueError: an unknown policy, or a number out of range.
    """

    name: str = "none"
    random_erasing: float = 0.0
    channels: int = 3
    operations: int = 2
    magnitude: float = 9.0
    _choices: list[list[nn.Module]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.name not in AUGMENTATIONS:
            raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {self.name!r}.")
        if not 0 <= self.random_erasing <= 1 or not 0 < self.magnitude < 30 or self.operations < 1:
            raise ValueError(
                "expected random_erasing from 0 to 1, magnitude between 0 and 30 and at least one operation, got "
                f"{self.random_erasing}, {self.magnitude} and {self.operations}. They are a share of the images, a "
                "strength on RandAugment's scale, and how many operations each image undergoes."
            )
        if self.changes:
            _require_kornia()
        choices = _operations(self.magnitude, self.channels) if self.name == "randaugment" else []
        object.__setattr__(self, "_choices", choices)

    @property
    def changes(self) -> bool:
        """Whether it does anything."""
        return self.name != "none" or self.random_erasing > 0

    def cuts(self, size: tuple[int, int] | None) -> bool:
        """Whether images of (H, W) are cut from the originals (`cut`) rather than shifted; None: of any size."""
        return self.name == "resized_crop_flip" or (
            self.name == "randaugment" and size is not None and min(size) > _SMALL
        )

    def cut(self, images: list[Image], size: tuple[int, int], resample: int | None) -> list[Image]:
        """A piece of each image, resized to (H, W): the first of ten draws that fits, else the first made to fit.

        Args:
            images: the originals, of any size.
            size: height and width of what is made.
            resample: Pillow's number of the filter; None: bicubic.
        """
        from PIL.Image import Resampling

        how = Resampling.BICUBIC if resample is None else Resampling(resample)
        chances = torch.rand(len(images), 4, 10)  # area, shape, place from left and from top
        return [
            image.resize((size[1], size[0]), how, box=_piece(image.width, image.height, draws))
            for image, draws in zip(images, chances, strict=True)
        ]

    @torch.no_grad()
    def __call__(self, pixels: Tensor, cut: bool = False) -> Tensor:
        """The images changed, (B, C, H, W) in [0, 1].

        Args:
            pixels: the same.
            cut: they have been cut from the originals, so that they are not shifted.
        """
        import kornia.augmentation as kornia

        size = (pixels.shape[2], pixels.shape[3])
        if self.name in ("crop_flip", "randaugment") and not cut:
            pixels = kornia.RandomCrop(size, padding=(size[1] // 8, size[0] // 8))(pixels)
        if self.name != "none":
            pixels = kornia.RandomHorizontalFlip()(pixels)
        if self._choices:
            for _ in range(self.operations):
                pixels = _one_each(pixels, self._choices)
        if self.random_erasing > 0:
            pixels = kornia.RandomErasing(value=0.5, p=self.random_erasing)(pixels)
        return pixels


@contextmanager
def draws_of(parts: Iterable[bytes]) -> Iterator[None]:
    """Within this context torch draws on the CPU what `parts` decide, and afterwards what it would have drawn.

    The Trainer makes batches ahead of the step and restores its random state after the first batches of a resumed
    run: drawn from that state, the images of the two batches after a checkpoint would not be the unbroken run's.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    state = torch.get_rng_state()
    # torch.manual_seed would seed the accelerators too, and so repeat their dropout with the batch
    torch.default_generator.manual_seed(int.from_bytes(digest.digest()) >> 1)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _piece(width: int, height: int, draws: Tensor) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a piece, from (4, 10) uniform numbers."""
    areas, shapes, *_ = draws
    sides = ((0.08 + 0.92 * areas) * width * height).sqrt()
    roots = torch.exp((2 * shapes - 1) * math.log(4 / 3)).sqrt()
    widths, heights = sides * roots, sides / roots
    chosen = int(((widths <= width) & (heights <= height)).int().argmax())
    wide, high, left, top = (float(x[chosen]) for x in (widths, heights, *draws[2:]))
    shrink = min(1.0, width / wide, height / high)
    wide, high = wide * shrink, high * shrink
    left, top = left * max(0.0, width - wide), top * max(0.0, height - high)
    return left, top, min(left + wide, width), min(top + high, height)


def _require_kornia() -> None:
    try:
        import kornia.augmentation  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "images are augmented by kornia, which is missing: pip install 'hfdistill[vision]'. Without it, train "
            "with augmentation='none'."
        ) from error


def _operations(magnitude: float, channels: int) -> list[list[nn.Module]]:
    """RandAugment's operations at one strength; of one that can go two ways both. An empty list is identity."""
    from kornia.augmentation.auto import RandAugment

    def one(name: str, low: float, high: float, strength: float = magnitude) -> nn.Module:
        return RandAugment(1, strength, policy=[[(name, low, high)]])  # type: ignore[arg-type] # fractions work

    def both_ways(name: str) -> list[nn.Module]:
        # kornia's scale runs from 0.1 through 1, which changes nothing, to 1.9
        return [one(name, 0.1, 1.9, strength=15 + sign * magnitude / 2) for sign in (-1, 1)]

    tones = ("color", "contrast", "brightness", "sharpness")[0 if channels == 3 else 1 :]
    shear = math.degrees(math.atan(0.3)) / 180  # kornia takes it in half turns
    return [
        [],
        [one("auto_contrast", 0, 1)],
        [one("equalize", 0, 1)],
        [one("rotate", -30.0, 30.0)],
        [one("posterize", 4.0, 8.0)],
        [one("solarize", 0.0, 1.0, strength=30 - magnitude)],  # inverts what is above: the less, the stronger
        *[both_ways(name) for name in tones],
        *[[one(name, -shear, shear)] for name in ("shear_x", "shear_y")],
        *[[one(name, -0.45, 0.45)] for name in ("translate_x", "translate_y")],
    ]


def _one_each(pixels: Tensor, choices: list[list[nn.Module]]) -> Tensor:
    """One operation for each image; kornia's own RandAugment draws one for the whole batch."""
    chosen = torch.randint(len(choices), (len(pixels),))
    ways = torch.randint(2, (len(pixels),))
    changed = pixels.clone()
    for number, variants in enumerate(choices):
        for way, operation in enumerate(variants):
            mine = (chosen == number) & ((ways == way) | (len(variants) == 1))
            if mine.any():
                changed[mine] = operation(pixels[mine])
    return changed
