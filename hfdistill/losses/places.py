"""Tokens as places of a map: the patches of an image on their grid, without the class and distillation tokens.

Text is a map of one dimension: its tokens stay as they are. Layers of one image model may have different grids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hfdistill.anatomy import Anatomy


class Grid(NamedTuple):
    """How one layer of a model lays out its tokens.

    Attributes:
        prefix: tokens before the first patch (class token, distillation token); 0 for text.
        sides: rows and columns of the patches as the configuration has them; None for text.
    """

    prefix: int = 0
    sides: tuple[int, int] | None = None

    def of(self, tokens: int) -> tuple[int, int] | None:
        """Rows and columns of this many patches: the configured sides, or a square (interpolated positions).

        Raises:
            ValueError: the patches of an image model form neither.
        """
        if self.sides is None:
            return None
        side = math.isqrt(tokens)
        if math.prod(self.sides) == tokens or side * side == tokens:
            return self.sides if math.prod(self.sides) == tokens else (side, side)
        raise ValueError(
            f"expected the patches of {self.sides[0]} x {self.sides[1]} or of a square, got {tokens}. Patches are "
            "compared by their place; give the model images of its own size, or square ones."
        )


def grid_of(anatomy: Anatomy, layer: int) -> Grid:
    """How a layer lays out its tokens; 0 is the embedding output."""
    return Grid(anatomy.prefix_tokens, anatomy.grid_of(layer))


def common_sides(places: int, grids: Sequence[Grid]) -> tuple[int, int] | None:
    """Rows and columns of places that grids of these layouts were aligned to; None for text."""
    images = [grid for grid in grids if grid.sides is not None]
    known = next((grid.sides for grid in images if math.prod(grid.sides or ()) == places), None)
    return known if known is not None or not images else images[0].of(places)


def aligned_tokens(
    student: Tensor, teacher: Tensor, mask: Tensor | None, ours: Grid, theirs: Grid
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same tokens of both sides: as they are, or, of two different layouts of an image, those that both have.

    These are the special tokens of both (the class token stands first), then the places of the smaller grid.

    Args:
        student: (B, N_student, D_student).
        teacher: (B, N_teacher, D_teacher).
        mask: (B, N) for text, None for images.
        ours: the student's layout.
        theirs: the teacher's.

    Returns:
        (B, N, D_student), (B, N, D_teacher), mask (B, N) or None.

    Raises:
        ValueError: different numbers of tokens that are not both of images.
    """
    if student.shape[1] == teacher.shape[1] and ours.prefix == theirs.prefix:
        return student, teacher, mask
    shared = min(ours.prefix, theirs.prefix)
    sides = aligned_places(student, teacher, None, ours, theirs)
    if shared == 0:
        return sides
    own, other = (
        torch.cat([states[:, :shared], places], dim=1)
        for states, places in zip((student, teacher), sides[:2], strict=True)
    )
    return own, other, None


def aligned_places(
    student: Tensor, teacher: Tensor, mask: Tensor | None, ours: Grid, theirs: Grid
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same places of both sides: prefix tokens left out, the larger grid average-pooled to the smaller.

    Args:
        student: (B, N_student, D_student).
        teacher: (B, N_teacher, D_teacher).
        mask: (B, N) for text, None for images.
        ours: the student's layout.
        theirs: the teacher's.

    Returns:
        (B, N, D_student), (B, N, D_teacher), mask (B, N) or None.

    Raises:
        ValueError: different numbers of tokens that are not both patches of images.
    """
    student, teacher = student[:, ours.prefix :], teacher[:, theirs.prefix :]
    if mask is not None and ours.prefix:
        mask = mask[:, ours.prefix :]
    if student.shape[1] == teacher.shape[1]:
        return student, teacher, mask
    own, other = ours.of(student.shape[1]), theirs.of(teacher.shape[1])
    if own is None or other is None:
        raise ValueError(
            f"tokens are compared one by one, got {student.shape[1]} tokens (student) and {teacher.shape[1]} "
            "(teacher) that are not both patches of an image. Give both models the same tokens, or compare one vector "
            "per row."
        )
    smaller = (min(own[0], other[0]), min(own[1], other[1]))
    return pooled_grid(student, own, smaller), pooled_grid(teacher, other, smaller), None


def pooled_grid(states: Tensor, sides: tuple[int, int], smaller: tuple[int, int]) -> Tensor:
    """Patches (B, N, D) of a grid averaged to a smaller grid, (B, N', D)."""
    if sides == smaller:
        return states
    grid = states.transpose(1, 2).reshape(len(states), -1, *sides)  # (B, D, rows, columns)
    return F.adaptive_avg_pool2d(grid, smaller).flatten(2).transpose(1, 2)  # (B, N', D)


def enlarged_grid(states: Tensor, sides: tuple[int, int], larger: tuple[int, int]) -> Tensor:
    """Patches (B, N, D) of a grid repeated over a larger grid, (B, N', D)."""
    grid = states.transpose(1, 2).reshape(len(states), -1, *sides)  # (B, D, rows, columns)
    return F.interpolate(grid, larger, mode="nearest").flatten(2).transpose(1, 2)  # (B, N', D)
