"""Reading images: every mode that a file may have, and what cannot be read."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hfdistill.images.decoding import decode_image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> dict[str, Any]:
    """An image as a row holds it."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return {"bytes": content.getvalue(), "path": None}


def ramp() -> np.ndarray:
    """(16, 16) from 0 to 255."""
    return np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize(
    "image",
    [
        encoded(Image.fromarray(ramp())),
        encoded(Image.fromarray(ramp()).convert("RGB")),
        encoded(Image.fromarray(ramp()).convert("RGBA")),
        encoded(Image.fromarray(ramp()).convert("LA")),
        encoded(Image.fromarray(ramp()).convert("P"), transparency=bytes(range(256))),
        encoded(Image.fromarray(ramp()).convert("P"), "GIF"),
        encoded(Image.fromarray(ramp().astype(np.uint16) * 257)),
        encoded(Image.fromarray(ramp().astype(np.int32) * 257), "TIFF"),
    ],
    ids=["L", "RGB", "RGBA", "LA", "P, transparent", "P, GIF", "16 bits", "32 bits, 16 used"],
)
@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_the_same_grey_in_every_mode(image: dict[str, Any], channels: int, mode: str) -> None:
    """A set of mixed modes is common, and 16 bits that Pillow clips would make white images without an error."""
    decoded = decode_image(image, channels)
    assert decoded.mode == mode
    values = np.asarray(decoded).reshape(16, 16, channels)
    assert np.array_equal(values, np.repeat(ramp()[..., None], channels, axis=2))


def test_cmyk_and_bilevel() -> None:
    """Scans and print files come in these; their colours must survive."""
    red = decode_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert red.mode == "RGB"
    assert np.asarray(red).mean((0, 1)) == pytest.approx((255, 0, 0), abs=3)
    assert np.unique(np.asarray(decode_image(encoded(Image.new("1", (8, 8), 1)), 1))).tolist() == [255]


def test_colour_becomes_luma() -> None:
    """A grey model must see green as brighter than blue, as it does wherever else images are converted."""
    grey = [decode_image(Image.new("RGB", (2, 2), colour), 1).getpixel((0, 0)) for colour in ("lime", "red", "blue")]
    assert grey == pytest.approx([0.587 * 255, 0.299 * 255, 0.114 * 255], abs=1)


def test_a_camera_held_upright() -> None:
    """Phones store portraits lying down, with a note; a model trained on them lying learns another task."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees
    lying = Image.fromarray(np.concatenate([np.zeros((8, 8)), np.full((8, 8), 255)], axis=1).astype(np.uint8))
    upright = np.asarray(decode_image(encoded(lying, exif=exif), 1))
    assert upright.shape == (16, 8)
    assert (upright[:8] == 0).all()
    assert (upright[8:] == 255).all()


def test_files_by_path(tmp_path: Path) -> None:
    """Rows of a folder hold paths, not bytes."""
    path = tmp_path / "image.png"
    Image.new("RGB", (4, 2), "red").save(path)
    assert decode_image({"bytes": None, "path": str(path)}).size == (4, 2)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"bytes": b"", "path": "a.jpg"}, "0 bytes"),
        ({"bytes": b"no image at all", "path": None}, "UnidentifiedImageError"),
        ({"bytes": encoded(Image.new("RGB", (64, 64)), "JPEG")["bytes"][:-20], "path": None}, "truncated"),
        ({"bytes": encoded(Image.new("RGB", (64, 64)))["bytes"][:-30], "path": None}, ": "),
        ({"bytes": None, "path": None}, "neither bytes nor a path"),
        ({"bytes": None, "path": "nowhere.jpg"}, "FileNotFoundError"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "no fixed range"),
        (encoded(Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)), "TIFF"), "more than 16 bits"),
    ],
    ids=["empty", "text", "truncated JPEG", "truncated PNG", "nothing", "no file", "float", "32 bits"],
)
def test_what_cannot_be_read_is_a_value_error(image: dict[str, Any], message: str) -> None:
    """Pillow raises seven kinds of error; whoever skips corrupt files must catch all of them, and no other."""
    with pytest.raises(ValueError, match=message):
        decode_image(image)


def test_what_is_no_image_at_all() -> None:
    """A column of decoded arrays is a mistake in the data set, not a corrupt file to be skipped."""
    with pytest.raises(TypeError, match="cast_column"):
        decode_image([[0, 1], [2, 3]])


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow is optional: the error must say how to get it."""
    from hfdistill.images.decoding import require_pillow

    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ImportError, match=r"hfdistill\[vision\]"):
        require_pillow()
