"""Batches of images: the processor's own pixels in evaluation, and what augmentation may and may not change."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from toy_models import toy_vit
from training_toys import largest_difference, trainer_of, weights_of
from transformers import ConvNextImageProcessorPil, DeiTImageProcessorPil, ViTImageProcessorPil

from hfdistill.images.augmentation import AUGMENTATIONS, Augmentation, _one_each, _operations
from hfdistill.images.batches import ImageCollator

PROCESSORS = {
    "vit": ViTImageProcessorPil(size={"height": 24, "width": 20}),
    "deit": DeiTImageProcessorPil(size={"height": 28, "width": 28}, crop_size={"height": 24, "width": 24}),
    "convnext": ConvNextImageProcessorPil(size={"shortest_edge": 28}),
    "raw": ViTImageProcessorPil(size={"height": 24, "width": 24}, do_normalize=False, do_rescale=False),
}


def picture(width: int = 32, height: int = 32, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(values, "RGBA" if mode == "RGBA" else None).convert(mode)


def rows_of(images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """Rows with these images, and their number as the label."""
    return [{"image": image, "labels": number} for number, image in enumerate(images)]


def pixels_of(images: Sequence[Image.Image], size: int = 32, **options: Any) -> torch.Tensor:
    """Pixel values of a batch, normalised to [-1, 1]."""
    processor = ViTImageProcessorPil(size={"height": size, "width": size})
    return ImageCollator(processor, **options)(rows_of(images))["pixel_values"]


@pytest.mark.parametrize("name", PROCESSORS)
def test_evaluation_is_the_processor(name: str) -> None:
    """What is measured must be what a deployed student sees, to the last bit, whatever the files' size and mode."""
    images = [
        picture(*size, mode=mode, seed=seed)
        for seed, (size, mode) in enumerate(
            [((32, 32), "RGB"), ((57, 40), "L"), ((25, 90), "RGBA"), ((24, 24), "CMYK"), ((80, 31), "P")]
        )
    ]
    batch = ImageCollator(PROCESSORS[name])(rows_of(images))
    expected = PROCESSORS[name]([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected)
    assert torch.equal(batch["labels"], torch.arange(5))


def test_a_grey_model() -> None:
    """One channel is another path through every function."""
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    images = [picture(9, 12), picture(8, 8, "L")]
    grey = ImageCollator(processor, channels=1)(rows_of(images))["pixel_values"]
    assert torch.equal(grey, processor([i.convert("L") for i in images], return_tensors="pt")["pixel_values"])
    for policy in AUGMENTATIONS:
        assert ImageCollator(processor, policy, 0.5, channels=1)(rows_of(images))["pixel_values"].shape == (2, 1, 8, 8)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(24, 24), (20, 24), (64, 48)], ids=str)
def test_augmented_images_are_resized_and_normalised_alike(name: str, size: tuple[int, int]) -> None:
    """A student trained on other pixels than it is measured on loses for no reason that a log would show."""
    half = np.random.default_rng(0).integers(0, 256, (size[1], size[0] // 2, 3), dtype=np.uint8)
    even = Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1))  # the same when swapped left and right
    plain, flipped = (
        ImageCollator(PROCESSORS[name], policy)(rows_of([even] * 4))["pixel_values"] for policy in ("none", "flip")
    )
    assert flipped.dtype == torch.float32
    assert torch.allclose(plain.float(), flipped, atol=2e-6 * float(plain.max()))


def test_flip() -> None:
    """Half of the images, each as a whole and bit for bit."""
    images = [picture(seed=seed) for seed in range(64)]
    plain, flipped = pixels_of(images), pixels_of(images, augmentation="flip")
    same, swapped = (((x - flipped).abs().amax((1, 2, 3)) < 1e-6) for x in (plain, plain.flip(3)))
    assert (same ^ swapped).all()
    assert 16 < swapped.sum() < 48


def test_crop_flip_shifts_by_whole_pixels() -> None:
    """Interpolation would blur small images; the black border must be black, and no shift exceed an eighth."""
    images = [picture(seed=seed) for seed in range(32)]
    plain = torch.nn.functional.pad(pixels_of(images), (4, 4, 4, 4), value=-1.0)
    found = set()
    for before, after in zip(plain, pixels_of(images, augmentation="crop_flip"), strict=True):
        hits = [
            (top, left, swapped)
            for top in range(9)
            for left in range(9)
            for swapped in (False, True)
            if torch.allclose(
                before[:, top : top + 32, left : left + 32], after.flip(2) if swapped else after, atol=1e-6
            )
        ]
        assert len(hits) == 1
        found.add(hits[0])
    assert len(found) > 20
    assert {top for top, _, _ in found} >= {0, 8} or len({top for top, _, _ in found}) > 5


def test_resized_crops_are_cut_from_the_original() -> None:
    """Cut from what is resized already, a small piece would be a blur; pieces must vary in size, place and shape."""
    ramp = np.broadcast_to(np.linspace(0, 255, 256, dtype=np.uint8)[None, :, None], (192, 256, 3))
    across = (pixels_of([Image.fromarray(ramp)] * 100, 16, augmentation="resized_crop_flip") + 1) / 2
    widths = across.amax((1, 2, 3)) - across.amin((1, 2, 3))
    assert across.shape == (100, 3, 16, 16)
    assert 0.15 < widths.min() < 0.35
    assert widths.max() > 0.8
    assert across.mean((1, 2, 3)).std() > 0.05
    assert across.mean() == pytest.approx(0.5, abs=0.07)
    fine = np.indices((256, 256)).sum(0) // 4 % 2 * 255  # stripes that are grey at 16 pixels, but not in a small piece
    stripes = pixels_of([Image.fromarray(fine.astype(np.uint8))] * 40, 64, augmentation="resized_crop_flip")
    assert pixels_of([Image.fromarray(fine.astype(np.uint8))], 16).std() < 0.2
    assert stripes.std((1, 2, 3)).max() > 0.6


@pytest.mark.parametrize("shape", [(500, 4), (4, 500), (1, 1), (3, 2)], ids=str)
def test_resized_crops_of_odd_shapes(shape: tuple[int, int]) -> None:
    """A panorama has no piece of 3:4 as large as was drawn; one bad file must not stop a training."""
    assert pixels_of([picture(*shape)] * 8, 16, augmentation="resized_crop_flip").shape == (8, 3, 16, 16)


def test_randaugment_draws_for_each_image() -> None:
    """The package kornia draws one operation for the whole batch, which is another and weaker method."""
    same = pixels_of([picture()] * 48, augmentation="randaugment", magnitude=20)
    assert same.min() >= -1
    assert same.max() <= 1 + 1e-6
    alike = torch.rand(1, 3, 8, 8).expand(48, 3, 8, 8)
    changed = _one_each(alike, _operations(20, 3))
    assert len(torch.unique(changed.flatten(1), dim=0)) > 8  # one operation has at most two directions
    assert torch.equal(alike[0], alike[-1])


def test_randaugment_cuts_large_images() -> None:
    """Large images are cut from the original, small ones shifted: nothing of a large one may be black border."""
    white = Image.new("RGB", (300, 300), "white")
    policy = Augmentation("randaugment")
    assert [policy.cuts((64, 64)), policy.cuts((65, 80)), policy.cuts(None)] == [False, True, False]
    assert pixels_of([white] * 4, 96, augmentation="resized_crop_flip").min() == pytest.approx(1.0)
    assert pixels_of([white] * 8, 96, augmentation="crop_flip").min() == pytest.approx(-1.0)


@pytest.mark.parametrize("channels", [3, 1])
def test_every_operation_grows_with_the_magnitude(channels: int) -> None:
    """The package kornia scales some backwards, and others through the strength at which they do nothing."""
    x = torch.nn.functional.interpolate(torch.rand(16, channels, 8, 8), size=(32, 32), mode="bilinear")
    weak, strong = _operations(3, channels), _operations(27, channels)
    assert len(weak) == 14 - (channels == 1)
    assert weak[0] == []
    for place, (low, high) in enumerate(zip(weak[1:], strong[1:], strict=True), 1):
        for one, other in zip(low, high, strict=True):
            changes = [float((operation(x) - x).abs().mean()) for operation in (one, other)]
            assert changes[0] > 0, place
            if place > 2:  # auto-contrast and equalize know no strength
                assert changes[1] > 1.5 * changes[0], (place, changes)
            assert other(x).min() >= 0
            assert other(x).max() <= 1 + 1e-6


def test_random_erasing() -> None:
    """A share of the images, and of these a rectangle of a third at most."""
    white = [Image.new("RGB", (32, 32), "white")] * 200
    erased = (pixels_of(white, random_erasing=0.25) < 0.5).float().mean((1, 2, 3))
    assert 30 < (erased > 0).sum() < 70
    assert erased.max() < 0.36
    assert (pixels_of(white) == 1).all()


@pytest.mark.parametrize("policy", AUGMENTATIONS[1:])
def test_draws_depend_on_the_rows_alone(policy: str) -> None:
    """Whatever else draws, here or in a data loader worker, a resumed run must see the same images."""
    images = [picture(40, 40, seed=seed) for seed in range(8)]
    collator = ImageCollator(PROCESSORS["vit"], policy, 0.5)
    first = collator(rows_of(images))["pixel_values"]
    for generator in (torch.manual_seed, np.random.seed, random.seed):
        generator(5)
    state = torch.get_rng_state()
    again = ImageCollator(PROCESSORS["vit"], policy, 0.5)(rows_of(images))["pixel_values"]
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, collator(rows_of(images[::-1]))["pixel_values"].flip(0))


def test_encoded_rows_draw_apart(tmp_path: Path) -> None:
    """Rows of a folder hold only paths, which must tell them apart as their bytes do."""
    for name in ("a", "b"):
        picture().save(tmp_path / f"{name}.png")
    collator = ImageCollator(PROCESSORS["vit"], "crop_flip")
    by_path, other, by_bytes = (
        collator([{"image": image, "labels": 0}] * 8)["pixel_values"]
        for image in (
            {"bytes": None, "path": str(tmp_path / "a.png")},
            {"bytes": None, "path": str(tmp_path / "b.png")},
            {"bytes": (tmp_path / "a.png").read_bytes(), "path": None},
        )
    )
    assert not torch.equal(by_path, other)
    assert not torch.equal(by_path, by_bytes)


def test_a_resumed_run_sees_the_same_images(tmp_path: Path) -> None:
    """The Trainer makes two batches before it restores its random state: draws from that state would differ."""
    images = Dataset.from_dict({"image": [picture(8, 8, seed=seed) for seed in range(24)], "labels": [0, 1, 2] * 8})
    collator = ImageCollator(ViTImageProcessorPil(size={"height": 8, "width": 8}), "crop_flip", 0.5)
    plan = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "remove_unused_columns": False}
    given = {"rows": images, "data_collator": collator, "teacher": toy_vit(), **plan}
    whole, resumed = (trainer_of(tmp_path, "kd", student=toy_vit(), **given) for _ in range(2))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert largest_difference(weights_of(whole.model), weights_of(resumed.model)) == 0


def test_other_columns_are_kept() -> None:
    """Row numbers of memory banks and cached teacher outputs travel with the rows."""
    rows = [{"image": picture(), "label": 1, "sample_index": 7, "teacher_logits": [0.5, 1.0]}] * 2
    batch = ImageCollator(PROCESSORS["vit"])(rows)
    assert {name: tuple(value.shape) for name, value in batch.items() if name != "pixel_values"} == {
        "labels": (2,),
        "sample_index": (2,),
        "teacher_logits": (2, 2),
    }
    assert set(ImageCollator(PROCESSORS["vit"])([{"image": picture()}])) == {"pixel_values"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"labels": 0}, "remove_unused_columns=False"),
        ({"image": {"bytes": b"", "path": "a/b.jpg"}}, r"row 0 of a batch, a/b\.jpg, cannot be decoded \(0 bytes\)"),
        ({"image": picture(), "caption": "a cat"}, "column 'caption' holds no numbers"),
    ],
)
def test_rows_that_make_no_batch(row: dict[str, Any], message: str) -> None:
    """Each would fail in torch or transformers with a message about tensors."""
    with pytest.raises(ValueError, match=message):
        ImageCollator(PROCESSORS["vit"])([row])


def test_images_of_different_size() -> None:
    """A processor that keeps proportions makes no batch; which keyword helps is not plain to see."""
    ragged = ViTImageProcessorPil(size={"shortest_edge": 24})
    with pytest.raises(ValueError, match="crop_size"):
        ImageCollator(ragged)(rows_of([picture(32, 32), picture(64, 32)]))
    assert ImageCollator(ragged, "crop_flip")(rows_of([picture()] * 2))["pixel_values"].shape == (2, 3, 24, 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augmentation": "flips"}, "must be one of none, flip, "),
        ({"random_erasing": 1.5}, "random_erasing from 0 to 1"),
        ({"magnitude": 30}, "magnitude between 0 and 30"),
        ({"operations": 0}, "at least one operation"),
        ({"channels": 4}, "3 .RGB. or 1 .grey."),
        ({"channels": 1}, "refuses images of 1 channels"),
        ({"processor": ViTImageProcessorPil(do_resize=False), "augmentation": "resized_crop_flip"}, "no fixed size"),
        (
            {"processor": ViTImageProcessorPil(do_convert_rgb=True, image_mean=0.5, image_std=0.5), "channels": 1},
            "channels",
        ),
    ],
)
def test_options_that_cannot_be_met(options: dict[str, Any], message: str) -> None:
    """A misspelt policy or a grey model with a colour processor must not fail after the teacher's training."""
    with pytest.raises(ValueError, match=message):
        ImageCollator(**({"processor": PROCESSORS["vit"]} | options))


def test_native_size_is_kept() -> None:
    """A processor that does not resize is right for a set of one size, augmented or not."""
    processor = ViTImageProcessorPil(do_resize=False)
    for policy in ("none", "crop_flip", "randaugment"):
        assert ImageCollator(processor, policy)(rows_of([picture(40, 28)] * 2))["pixel_values"].shape == (2, 3, 28, 40)


def test_without_kornia(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package kornia is optional, and only augmentation needs it."""
    monkeypatch.setitem(__import__("sys").modules, "kornia.augmentation", None)
    ImageCollator(PROCESSORS["vit"])
    for options in ({"augmentation": "flip"}, {"random_erasing": 0.1}):
        with pytest.raises(ImportError, match=r"hfdistill\[vision\]"):
            ImageCollator(PROCESSORS["vit"], **options)
