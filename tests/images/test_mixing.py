"""Mixup and CutMix of a batch: who is drawn, what becomes of pixels and labels."""

from __future__ import annotations

import re

import pytest
import torch
from source_tree import sources
from torch import Tensor
from torch.nn import functional as F

from hfdistill.images.mixing import ImageMixing
from hfdistill.losses import CATALOGUE, TaskLoss
from hfdistill.losses.response.knowledge_adjustment import AdjustedTargetLoss
from hfdistill.mixup import Mix, MixedBatch
from hfdistill.representations import Batch, Representations

IMAGES = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 6, 10)
"""Four images, each of its own number."""


def drawn(mixing: ImageMixing, pixels: Tensor = IMAGES, seed: int = 0) -> Mix:
    """One draw that mixes."""
    torch.manual_seed(seed)
    mix = mixing.draw(pixels)
    assert mix is not None
    return mix


def test_mixup_blends_each_image_with_its_partner() -> None:
    """In the share of the batch, the same for pixels and labels."""
    mix = drawn(ImageMixing(mixup_alpha=1.0))
    labels = torch.tensor([2, 0, 1, 1])
    batch = MixedBatch.of({"pixel_values": IMAGES, "labels": labels}, mix)
    share = float(mix.coefficients[0])
    assert 0 < share < 1
    assert (mix.coefficients == share).all()
    assert sorted(mix.partners.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(batch.inputs["pixel_values"], (1 - share) * IMAGES + share * IMAGES[mix.partners])
    assert torch.equal(batch.inputs["labels"], labels)
    assert batch.partner_labels is not None
    assert torch.equal(batch.partner_labels, labels[mix.partners])


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_pastes_a_piece_and_counts_it(seed: int) -> None:
    """The share of a label is the share of the pixels that are really its image's, at the border too."""
    mix = drawn(ImageMixing(cutmix_alpha=1.0), seed=seed)
    pixels = MixedBatch.of({"pixel_values": IMAGES}, mix).inputs["pixel_values"]
    foreign = pixels != IMAGES
    for row, partner in enumerate(mix.partners.tolist()):
        assert set(pixels[row].unique().tolist()) <= {float(row), float(partner)}
        if partner != row:
            assert foreign[row].float().mean() == pytest.approx(float(mix.coefficients[row]))
            rows, columns = foreign[row, 0].any(1).sum(), foreign[row, 0].any(0).sum()
            assert rows * columns == foreign[row, 0].sum(), "one rectangle"


def test_cutmix_draws_its_area_and_place_as_the_paper() -> None:
    """Before the border cuts it, the area is the drawn share in the image's proportions, its centre anywhere."""
    torch.manual_seed(0)
    boxes = []
    pixels = torch.zeros(1, 1, 40, 80)
    for _ in range(400):
        mix = ImageMixing(cutmix_alpha=1.0).draw(pixels)
        assert mix is not None
        assert mix.box is not None
        boxes.append(mix.box)
    top, bottom, left, right = torch.tensor(boxes).unbind(1)
    inside = (top > 0) & (bottom < 1) & (left > 0) & (right < 1)
    torch.testing.assert_close((bottom - top)[inside], (right - left)[inside], atol=0.03, rtol=0)
    area = 1 / 2 - 1 / 5 + 1 / 48  # of (a - a²/4)², what is inside of a square of side a, for a² uniform on [0, 1]
    assert float(((bottom - top) * (right - left)).mean()) == pytest.approx(area, abs=0.04)
    assert float((top + bottom).mean()) == pytest.approx(1.0, abs=0.1)
    assert float((left + right).mean()) == pytest.approx(1.0, abs=0.1)


def test_shares_follow_the_beta_distribution() -> None:
    """Its variance is what alpha sets: 1 / (4 (2 alpha + 1)); the mean is a half."""
    torch.manual_seed(0)
    for alpha in (0.2, 1.0, 8.0):
        mixes = [ImageMixing(mixup_alpha=alpha).draw(IMAGES) for _ in range(400)]
        shares = torch.tensor([float(mix.coefficients[0]) for mix in mixes if mix is not None])
        assert float(shares.mean()) == pytest.approx(0.5, abs=0.06)
        assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.2)


def test_a_teachers_own_images_are_mixed_alike() -> None:
    """A column teacher_pixel_values shows the same rows at another size: the same piece of the same partner."""
    mix = drawn(ImageMixing(cutmix_alpha=1.0), seed=3)
    large = IMAGES.repeat_interleave(2, 2).repeat_interleave(3, 3)
    mixed = MixedBatch.of({"pixel_values": IMAGES, "teacher_pixel_values": large}, mix).inputs
    expected = mixed["pixel_values"].repeat_interleave(2, 2).repeat_interleave(3, 3)
    assert torch.equal(mixed["teacher_pixel_values"], expected)
    assert not torch.equal(expected, large)


def test_targets_of_several_classes_are_mixed_as_numbers() -> None:
    """A row of shares of classes has a half; so it needs no labels of a partner."""
    mix = drawn(ImageMixing(cutmix_alpha=1.0))
    targets = torch.eye(4)
    batch = MixedBatch.of({"pixel_values": IMAGES, "labels": targets}, mix)
    share = mix.coefficients[:, None]
    torch.testing.assert_close(batch.inputs["labels"], (1 - share) * targets + share * targets[mix.partners])
    assert batch.partner_labels is None


def test_draws_are_those_of_torchs_generator() -> None:
    """Its state is in a checkpoint, so that a resumed run mixes as the whole one did."""
    both = ImageMixing(0.8, 1.0, probability=0.5)
    torch.manual_seed(5)
    first = [both.draw(IMAGES) for _ in range(20)]
    torch.manual_seed(5)
    again = [both.draw(IMAGES) for _ in range(20)]
    assert [None if mix is None else mix.partners.tolist() for mix in first] == [
        None if mix is None else mix.partners.tolist() for mix in again
    ]
    kinds = {"whole" if mix is None else "mixup" if mix.box is None else "cutmix" for mix in first}
    assert kinds == {"whole", "mixup", "cutmix"}


def test_the_switch_chooses_between_the_two() -> None:
    """0 is mixup alone, 1 CutMix alone."""
    assert all(drawn(ImageMixing(1.0, 1.0, switch=0.0), seed=seed).box is None for seed in range(5))
    assert all(drawn(ImageMixing(1.0, 1.0, switch=1.0), seed=seed).box is not None for seed in range(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of them above 0"),
        ({"mixup_alpha": -1.0, "cutmix_alpha": 2.0}, "of 0 .off. or above"),
        ({"mixup_alpha": 1.0, "probability": 0.0}, r"in \(0, 1\]"),
        ({"mixup_alpha": 1.0, "switch": 1.5}, r"in \[0, 1\]"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, float], message: str) -> None:
    """A probability of 0 is a run without mixing, which is said by leaving alpha at 0."""
    with pytest.raises(ValueError, match=message):
        ImageMixing(**options)


def test_what_is_no_batch_of_images_is_refused() -> None:
    """Videos and patches have no one rectangle."""
    with pytest.raises(ValueError, match=r"expected pixel_values \(B, C, H, W\), got \(4, 3, 6\)"):
        ImageMixing(1.0).draw(IMAGES[..., 0])


def test_the_task_loss_of_mixed_rows_is_never_the_heads_own() -> None:
    """A head that computes its loss itself knows one label of two; and a single output learns the number between."""
    labels, partners, shares = torch.tensor([0, 1]), torch.tensor([1, 1]), torch.full((2,), 0.3)
    batch = Batch(2, labels, partner_labels=partners, partner_shares=shares)
    logits = torch.randn(2, 3)
    expected = (0.7 * F.cross_entropy(logits, labels) + 0.3 * F.cross_entropy(logits, partners)).item()
    shown = Representations(logits=logits, loss=torch.tensor(7.0))
    assert TaskLoss()(shown, Representations(), batch).item() == pytest.approx(expected)
    one = Representations(logits=torch.tensor([[0.3], [1.0]]))
    assert TaskLoss()(one, Representations(), batch).item() == pytest.approx(0.0)


def test_losses_that_read_labels_say_so() -> None:
    """One that did not would be trained on mixed images with the class of one of two."""
    reads, says = re.compile(r"\b(batch|targets)\.labels\b"), re.compile(r"def reads_classes|labelled.* = True")
    texts = {source.path.stem: "\n".join(source.lines) for source in sources("hfdistill/losses")}
    silent = {name for name, text in texts.items() if reads.search(text) and not says.search(text)}
    # it learns both labels; it asks which tokens are labelled at all; images have no vocabulary
    assert silent == {"task", "cross_vocabulary", "vocabulary"}
    assert CATALOGUE["DecoupledLoss"]().reads_classes
    assert AdjustedTargetLoss(adjustment="shift").reads_classes
    assert not AdjustedTargetLoss(adjustment="none").reads_classes
