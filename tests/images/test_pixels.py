"""Pixels converted from one image processor's to another's, held to what the processors themselves do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from toy_models import toy_swin, toy_vit
from transformers import CLIPConfig, CLIPForImageClassification
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hfdistill.images.pixels import ImageShape, PixelConversion, PixelStandard, explained_shapes

VIT = ViTImageProcessorPil(size={"height": 12, "width": 12})
OTHERS = {
    "another mean and std": ViTImageProcessorPil(
        size={"height": 12, "width": 12}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    ),
    "not normalized": ViTImageProcessorPil(size={"height": 12, "width": 12}, do_normalize=False),
    "0 to 255": ViTImageProcessorPil(size={"height": 12, "width": 12}, do_normalize=False, do_rescale=False),
    "another factor": ViTImageProcessorPil(size={"height": 12, "width": 12}, rescale_factor=1 / 127.5),
    "one number for all": ViTImageProcessorPil(size={"height": 12, "width": 12}, image_mean=0.4, image_std=0.3),
    "crop": CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12}),
    "blue first": MobileViTImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12}),
    "shortest edge": ConvNextImageProcessorPil(size={"shortest_edge": 12}, crop_pct=1.0, image_mean=[0.2] * 3),
    "divided twice": EfficientNetImageProcessorPil(size={"height": 12, "width": 12}, image_std=[0.3, 0.4, 0.5]),
    "offset": EfficientNetImageProcessorPil(
        size={"height": 12, "width": 12}, rescale_offset=True, rescale_factor=1 / 127.5, include_top=False
    ),
}


def picture(size: int = 12, seed: int = 0) -> Image.Image:
    """A random image in colour."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def read(processor: object, image: Image.Image) -> Tensor:
    """The pixel values of one image."""
    pixels: Tensor = processor(image, return_tensors="pt")["pixel_values"]  # type: ignore[operator]
    return pixels.float()


@pytest.mark.parametrize("name", OTHERS)
def test_a_teacher_reads_what_its_own_processor_would_give(name: str) -> None:
    """That is what a conversion is; in both directions."""
    ours, theirs = PixelStandard.of(VIT), PixelStandard.of(OTHERS[name])
    pixels, expected = (read(processor, picture()) for processor in (VIT, OTHERS[name]))
    assert (pixels - expected).abs().max() > 0.1
    largest = float(expected.abs().max())
    torch.testing.assert_close(PixelConversion(ours, theirs)(pixels), expected, atol=1e-6 * max(largest, 1), rtol=1e-5)
    torch.testing.assert_close(PixelConversion(theirs, ours)(expected), pixels, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "tolerance"), [(10, 0.02), (33, 0.06)])
def test_resizing_is_that_of_image_libraries(size: int, tolerance: float) -> None:
    """Smaller and larger; they differ by the rounding to whole colours between rows and columns, and no more."""
    other = ViTImageProcessorPil(size={"height": size, "width": size}, resample=3, image_mean=[0.4] * 3)
    pixels, expected = read(VIT, picture()), read(other, picture())
    converted = PixelConversion(PixelStandard.of(VIT), PixelStandard.of(other))(pixels)
    assert converted.shape == expected.shape
    assert (converted - expected).abs().max() < 2 * tolerance  # in units of std = 0.5
    assert (converted - expected).abs().mean() < 0.01


def test_resized_images_hold_no_colour_that_an_image_cannot() -> None:
    """Bicubic interpolation swings over at edges; a processor of whole colours cuts that off."""
    standard = PixelStandard((0.5,), (0.5,))
    larger = PixelConversion(standard, PixelStandard((0.5,), (0.5,), (9, 9)))
    edge = torch.cat([-torch.ones(1, 3, 4, 2), torch.ones(1, 3, 4, 2)], dim=3)
    assert larger(edge).abs().max() <= 1
    augmented = 3 * edge  # outside of any image: kept, but not exceeded
    assert larger(augmented).abs().max() == 3
    dark = larger(edge / 2)  # within an image's range the swing is the interpolation's own
    assert 0.5 < dark.abs().max() <= 1


def test_the_same_pixels_are_the_same_tensor() -> None:
    """A teacher of the student's own processor costs nothing, and its size is the batch's where it names none."""
    pixels = torch.randn(2, 3, 12, 12)
    standard = PixelStandard.of(VIT)
    assert PixelConversion(standard, standard)(pixels) is pixels
    assert PixelConversion(standard, PixelStandard(standard.mean, standard.std))(pixels) is pixels
    assert PixelConversion(PixelStandard(), PixelStandard(size=(6, 8)))(pixels).shape == (2, 3, 6, 8)


def test_grey_and_colour_become_each_other() -> None:
    """A student of grey images may have a teacher of colours; grey is what image libraries make of colours."""
    grey = ViTImageProcessorPil(size={"height": 12, "width": 12}, image_mean=[0.3], image_std=[0.2])
    ours, theirs = PixelStandard.of(grey, channels=1), PixelStandard.of(VIT)
    image = picture().convert("L")
    expected = read(VIT, image.convert("RGB"))
    torch.testing.assert_close(PixelConversion(ours, theirs)(read(grey, image)), expected, atol=1e-5, rtol=1e-5)
    found = PixelConversion(theirs, ours)(read(VIT, picture()))
    assert found.shape == (1, 1, 12, 12)
    assert (found - read(grey, image)).abs().max() < 1.01 / 255 / 0.2  # the library's grey is a whole number


def test_precision_is_that_of_the_pixels() -> None:
    """A batch in half precision stays in it; the arithmetic between is finer."""
    ours, theirs = PixelStandard.of(VIT), PixelStandard((0.4,), (0.3,), (6, 6))
    pixels = read(VIT, picture())
    for dtype in (torch.bfloat16, torch.float64):
        converted = PixelConversion(ours, theirs)(pixels.to(dtype))
        assert converted.dtype == dtype
        torch.testing.assert_close(converted.float(), PixelConversion(ours, theirs)(pixels), atol=0.02, rtol=0.01)


def test_processors_that_do_more_are_refused() -> None:
    """What cannot be done to a batch of pixels must not be left out silently."""
    with pytest.raises(ValueError, match=r"does \['color_quantize'\].*teacher_pixel_values"):
        PixelStandard.of(ImageGPTImageProcessorPil(clusters=[[0, 0, 0]]))
    with pytest.raises(ValueError, match="as height and width, or shortest_edge"):
        PixelStandard.of(ViTImageProcessorPil(size={"shortest_edge": 8, "longest_edge": 16}))
    assert PixelStandard.of(ViTImageProcessorPil(do_resize=False)).size is None


def test_standards_that_fit_no_image_are_refused() -> None:
    """Broadcasting three means over one channel would make three channels of it."""
    with pytest.raises(ValueError, match="each of 1 channels or one for all"):
        PixelStandard.of(VIT, channels=1)
    with pytest.raises(ValueError, match="a std above 0"):
        PixelStandard(std=(0.0,))
    with pytest.raises(ValueError, match=r"got 3 \(student\) and 4 \(teacher\)"):
        PixelConversion(PixelStandard(), PixelStandard(channels=4))
    with pytest.raises(ValueError, match=r"expected pixel_values \(B, 3, H, W\).*got \(2, 1, 8, 8\)"):
        PixelConversion(PixelStandard(), PixelStandard(size=(4, 4)))(torch.zeros(2, 1, 8, 8))


def test_shapes_are_read_of_a_configuration() -> None:
    """Where a model has two towers, of that for images; and what it does not say is not held against a batch."""
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    clip = CLIPForImageClassification(CLIPConfig(vision_config=tower, text_config={"hidden_size": 16}))
    assert ImageShape.of(clip) == ImageShape(3, (8, 8))
    assert ImageShape(None, None).holds(torch.zeros(1, 5, 2, 3))
    assert not ImageShape(3, (8, 8)).holds(torch.zeros(1, 3, 8, 9))
    assert not ImageShape(3, None).holds(torch.zeros(3, 8, 8))


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 8, 8), (3, 8, 8)])
def test_a_refusal_says_what_images_the_model_takes(shape: tuple[int, ...]) -> None:
    """Transformers says that the sizes differ, not what to do; and of channels not even which."""
    inputs = {"pixel_values": torch.zeros(shape)}
    model = toy_vit()
    with pytest.raises(ValueError, match=r"takes pixel_values \(B, 3, 8, 8\), got .*Prepare the data"):
        run(model, inputs, "student")
    with pytest.raises(ValueError, match="Pass teacher_processing_class="):
        run(model, inputs, "teacher")


def test_other_errors_pass_as_they_are() -> None:
    """Images that fit are not to blame, nor is a size that the model can take; nor is memory that ran out."""
    fitting = {"pixel_values": torch.zeros(1, 3, 8, 8)}
    with pytest.raises(ValueError, match=r"^something else$"), explained_shapes(toy_vit(), fitting, "student"):
        raise ValueError("something else")
    with pytest.raises(torch.OutOfMemoryError), explained_shapes(toy_vit(), {}, "student"):
        raise torch.OutOfMemoryError
    run(toy_swin(), {"pixel_values": torch.zeros(1, 3, 16, 16)}, "student")


def run(model: nn.Module, inputs: dict[str, Tensor], role: str) -> None:
    """One forward pass."""
    with explained_shapes(model, inputs, role):
        model(**inputs)
