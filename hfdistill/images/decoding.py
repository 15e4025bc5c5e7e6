"""From a file's bytes to 8-bit pixels: one way to read an image, for the check of a data set and for its batches."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

_MODES = {1: "L", 3: "RGB"}


def decode_image(image: Any, channels: int = 3) -> Image:
    """Read an image as 8-bit RGB or grey, upright.

    Grey becomes three equal channels, and colour grey by Rec. 601 luma; palettes are looked up, CMYK is converted,
    transparency is dropped (what `AutoImageProcessor` and `pipeline` do, so that a deployed student sees the same),
    16 bits are divided by 257, of animations the first frame counts. An orientation that a camera noted is applied.

    Args:
        image: what a column of `datasets.Image` holds: {"bytes", "path"}, or a PIL image.
        channels: 3 or 1.

    Raises:
        ImportError: Pillow is not installed.
        TypeError: neither of the two.
        ValueError: what is there cannot be decoded; the message says why.
    """
    from PIL.Image import Image as PillowImage

    if not isinstance(image, Mapping | PillowImage):
        raise TypeError(
            f"expected an image, a mapping with bytes and path or a PIL image, got {type(image).__name__}. Cast the "
            "column: dataset.cast_column(name, datasets.Image())."
        )
    try:
        return _eight_bits(_upright(_opened(image) if isinstance(image, Mapping) else image), _MODES[channels])
    except ValueError:
        raise
    except Exception as error:  # whatever a format's parser stumbles on
        raise ValueError(f"{type(error).__name__}: {error}") from error


def require_pillow() -> None:
    """Refuse to go on without Pillow.

    Raises:
        ImportError: with the command that installs it.
    """
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError("images are read with Pillow, which is missing: pip install 'hfdistill[vision]'.") from error


def _opened(source: Mapping[str, Any]) -> Image:
    from PIL.Image import open as open_image

    content, path = source.get("bytes"), source.get("path")
    if content is None and not path:
        raise ValueError("no image: neither bytes nor a path")
    content = Path(str(path)).read_bytes() if content is None else content
    if not content:
        raise ValueError("0 bytes")
    return open_image(io.BytesIO(content))


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    image.load()
    return ImageOps.exif_transpose(image)


def _eight_bits(image: Image, mode: str) -> Image:
    from PIL.Image import fromarray

    if image.mode == mode:
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save the image with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow's own conversion would clip these at 255: white images
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("pixels of more than 16 bits; save the image with 8 or 16 bits")
        image = fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # of palettes with several transparent colours Pillow wants to be asked so
    return image.convert(mode)
