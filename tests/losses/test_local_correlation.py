"""Local correlation consistency: parts of texts and of images, its weights, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy_models import image_inputs, toy_vit
from toy_representations import STUDENT, TEACHER, toy_anatomy, toy_scene

from hfdistill.anatomy import Anatomy
from hfdistill.capture import capture
from hfdistill.functional.local import local_correlation, map_patches, text_segments
from hfdistill.losses.relation.local_correlation import LocalCorrelationLoss
from hfdistill.representations import Batch, Representations


def image(width: int, side: int, prefix: int = 1) -> Anatomy:
    """An image model of one layer with side x side patches."""
    return replace(toy_anatomy(width=width, depth=1), prefix_tokens=prefix, grid=(side, side))


def shown(hidden: Tensor) -> Representations:
    return Representations(hidden_states={1: hidden})


@pytest.mark.parametrize("weights", [(2.0, 3.0, 4.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_texts_are_compared_by_their_segments(weights: tuple[float, float, float]) -> None:
    """Three terms, each with its own weight, over the runs of real tokens."""
    loss = LocalCorrelationLoss(parts=3, within=weights[0], same_place=weights[1], across=weights[2])
    loss.bind(STUDENT, TEACHER)
    scene = toy_scene()
    (ours, held), (theirs, _) = (
        text_segments(states, 3, scene.batch.mask)
        for states in (scene.student.hidden_states[2], scene.teacher.hidden_states[4])
    )
    terms = local_correlation(ours, theirs, held)
    expected = sum(weight * term for weight, term in zip(weights, terms, strict=True))
    torch.testing.assert_close(loss(*scene.parts()), expected)


def test_images_are_cut_without_their_class_token() -> None:
    """Grids of any size give as many parts: 4 x 4 and 6 x 6 patches, in 2 x 2 squares of 4 and 9."""
    loss = LocalCorrelationLoss(parts=2)
    loss.bind(image(4, 4), image(5, 6, prefix=2))
    student, teacher = torch.randn(3, 1 + 16, 4), torch.randn(3, 2 + 36, 5)
    maps = (student[:, 1:].transpose(1, 2).reshape(3, 4, 4, 4), teacher[:, 2:].transpose(1, 2).reshape(3, 5, 6, 6))
    expected = sum(local_correlation(*(map_patches(side, 2) for side in maps)))
    value = loss(shown(student), shown(teacher), Batch(3))
    torch.testing.assert_close(value, expected)
    student[:, 0], teacher[:, :2] = 1e6, torch.nan
    torch.testing.assert_close(loss(shown(student), shown(teacher), Batch(3)), value)


def test_a_grid_that_parts_do_not_divide_is_pooled_first() -> None:
    """14 x 14 patches, as of common image models, have no quarter: they are averaged to 12 x 12."""
    loss = LocalCorrelationLoss(parts=4)
    loss.bind(image(3, 14), image(3, 14))
    student, teacher = torch.randn(2, 197, 3), torch.randn(2, 197, 3)
    maps = (
        torch.nn.functional.adaptive_avg_pool2d(side[:, 1:].transpose(1, 2).reshape(2, 3, 14, 14), 12)
        for side in (student, teacher)
    )
    expected = sum(local_correlation(*(map_patches(side, 4) for side in maps)))
    torch.testing.assert_close(loss(shown(student), shown(teacher), Batch(2)), expected)


def test_it_learns_from_real_image_models() -> None:
    """The layout of the tokens comes from the model, not from the test."""
    student, teacher = toy_vit(layers=1), toy_vit(layers=2, width=24)
    inputs, loss = image_inputs(), LocalCorrelationLoss(parts=2)
    loss.bind(Anatomy.of(student), Anatomy.of(teacher))
    assert loss.images[0][0].sides is not None
    ours, theirs = (
        capture(model, inputs, needs)[1] for model, needs in zip((student, teacher), loss.needs(), strict=True)
    )
    value = loss(ours, theirs, Batch.of(inputs))
    value.backward()
    assert value > 0


def test_parts_that_would_be_empty_are_refused() -> None:
    """More parts than patches on a side leave some without a place."""
    with pytest.raises(ValueError, match="at least 1 part, got 0"):
        LocalCorrelationLoss(parts=0)
    loss = LocalCorrelationLoss(parts=3)
    loss.bind(image(4, 2), image(4, 4))
    with pytest.raises(ValueError, match="3 x 3 parts out of 2 x 2 patches"):
        loss(shown(torch.randn(2, 5, 4)), shown(torch.randn(2, 17, 4)), Batch(2))
