"""Places of images brought together: grids pooled or enlarged, tokens that only one side has left out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_representations import toy_anatomy

from hfdistill.losses.places import Grid, aligned_places, aligned_tokens, common_sides, enlarged_grid, grid_of
from hfdistill.vision_stages import VisionStages

TEXT = Grid()


def states(grid: Grid, width: int, seed: int = 0) -> torch.Tensor:
    """Random states (2, N, D) of a layout."""
    assert grid.sides is not None
    tokens = grid.prefix + grid.sides[0] * grid.sides[1]
    return torch.randn(2, tokens, width, generator=torch.Generator().manual_seed(seed))


def test_tokens_of_one_layout_stay_as_they_are() -> None:
    """Class tokens and padding included: nothing may be lost where nothing has to be."""
    grid, mask = Grid(1, (2, 2)), torch.ones(2, 5)
    ours, theirs = states(grid, 4), states(grid, 6)
    own, other, kept = aligned_tokens(ours, theirs, mask, grid, grid)
    assert own is ours
    assert other is theirs
    assert kept is mask


@pytest.mark.parametrize(("ours", "theirs"), [(Grid(1, (2, 2)), Grid(2, (4, 4))), (Grid(2, (4, 4)), Grid(1, (2, 2)))])
def test_the_class_token_stays_and_the_distillation_token_goes(ours: Grid, theirs: Grid) -> None:
    """A ViT and a DeiT of other patches: both have a class token and the places of the smaller grid."""
    student, teacher = states(ours, 4), states(theirs, 6, seed=1)
    own, other, mask = aligned_tokens(student, teacher, None, ours, theirs)
    assert mask is None
    places = aligned_places(student, teacher, None, ours, theirs)
    for tokens, whole, pooled in ((own, student, places[0]), (other, teacher, places[1])):
        assert tokens.shape[1] == 5
        assert torch.equal(tokens[:, 0], whole[:, 0])
        assert torch.equal(tokens[:, 1:], pooled)


def test_a_map_of_a_convolutional_model_has_places_alone() -> None:
    """Each place of 2 x 2 is the mean of the four of 4 x 4 that it covers; the class token meets nothing."""
    ours, theirs = Grid(1, (4, 4)), Grid(0, (2, 2))
    student, teacher = states(ours, 4), states(theirs, 6)
    own, other, _ = aligned_tokens(student, teacher, None, ours, theirs)
    assert torch.equal(other, teacher)
    expected = student[:, 1:].unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2)  # (B, 4, D)
    torch.testing.assert_close(own, expected)


def test_texts_of_different_length_are_refused() -> None:
    """Their tokens are not places of one thing."""
    with pytest.raises(ValueError, match=r"got 3 tokens \(student\) and 4 \(teacher\).*Give both models the same"):
        aligned_tokens(torch.zeros(1, 3, 2), torch.zeros(1, 4, 2), None, TEXT, TEXT)


def test_layers_with_stages_have_grids_of_their_own() -> None:
    """And no special tokens; layers of other models share what the configuration says."""
    stages = VisionStages((4, 8), ((4, 4), (2, 2)))
    staged = replace(toy_anatomy(), stages=stages)
    assert [grid_of(staged, layer) for layer in (0, 1)] == [Grid(0, (4, 4)), Grid(0, (2, 2))]
    image = replace(toy_anatomy(), prefix_tokens=1, grid=(3, 3))
    assert grid_of(image, 0) == grid_of(image, 2) == Grid(1, (3, 3))
    assert grid_of(toy_anatomy(), 1) == TEXT


@pytest.mark.parametrize(
    ("places", "grids", "sides"),
    [
        (6, [Grid(0, (4, 6)), Grid(1, (2, 3))], (2, 3)),
        (4, [Grid(0, (7, 7)), Grid(1, (8, 8))], (2, 2)),  # neither: images of another size, and square
        (6, [TEXT, TEXT], None),
    ],
)
def test_sides_of_aligned_places(places: int, grids: list[Grid], sides: tuple[int, int] | None) -> None:
    """Losses that pool on both axes must know the axes after the alignment too."""
    assert common_sides(places, grids) == sides


def test_places_that_are_no_grid_are_refused() -> None:
    """Six places of a model of 7 x 7: rows and columns could only be guessed."""
    with pytest.raises(ValueError, match=r"expected the patches of 7 x 7 or of a square, got 6"):
        common_sides(6, [Grid(0, (7, 7))])


def test_a_grid_is_enlarged_by_repetition() -> None:
    """Each place stands for those that it covers."""
    small = states(Grid(0, (2, 2)), 3)
    large = enlarged_grid(small, (2, 2), (4, 4)).unflatten(1, (4, 4))  # (B, rows, columns, D)
    for row in range(4):
        for column in range(4):
            assert torch.equal(large[:, row, column], small[:, row // 2 * 2 + column // 2])


def test_as_many_tokens_are_not_the_same_tokens() -> None:
    """Two special tokens and 2 x 2 places are six, as 2 x 3 places are."""
    ours, theirs = Grid(2, (2, 2)), Grid(0, (2, 3))
    own, other, _ = aligned_tokens(states(ours, 4), states(theirs, 4), None, ours, theirs)
    assert torch.equal(own, states(ours, 4)[:, 2:])
    assert other.shape == (2, 4, 4)
