"""Positions, biases and projections for other patches: a resized patch must be the same token, in the same place."""

import pytest
import torch
from torch import Tensor, nn

from hfdistill.patches import Size, resized_bias_table, resized_patch_kernel, resized_positions

GROWN: list[tuple[Size, Size]] = [
    *(((4, 4), (8, 8)), ((4, 4), (5, 5)), ((16, 16), (17, 17)), ((3, 5), (7, 5))),
    *(((1, 1), (4, 6)), ((14, 14), (16, 16)), ((2, 3), (2, 3)), ((16, 16), (48, 32))),
]
SHRUNK: list[tuple[Size, Size]] = [((8, 8), (4, 4)), ((16, 16), (14, 14)), ((6, 9), (5, 2)), ((4, 4), (1, 1))]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def resized_images(images: Tensor, size: Size) -> Tensor:
    """Bilinear, with the filter that matters where images shrink."""
    return nn.functional.interpolate(images, size=size, mode="bilinear", antialias=True)


def tokens(images: Tensor, kernel: Tensor) -> Tensor:
    return torch.einsum("bcij,dcij->bd", images, kernel)


@pytest.mark.parametrize(("old", "new"), GROWN)
def test_a_larger_patch_is_the_same_token(old: Size, new: Size) -> None:
    """The promise of the pseudo-inverse: whatever is on the patch, resizing it and the kernel changes nothing."""
    patches, kernel = drawn(7, 3, *old), drawn(5, 3, *old, seed=1)
    larger = nn.functional.interpolate(patches, size=new, mode="bilinear", align_corners=False)
    made = resized_patch_kernel(kernel, new)
    torch.testing.assert_close(tokens(larger, made), tokens(patches, kernel), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("old", "new"), SHRUNK)
def test_a_smaller_patch_is_the_nearest_token(old: Size, new: Size) -> None:
    """Pixels are lost, so tokens cannot agree; the kernel must be the one of least squares: what is missing is nothing
    that a small patch could show.
    """
    kernel = drawn(5, 3, *old).requires_grad_()
    small = resized_images(kernel, new)
    made = resized_patch_kernel(kernel.detach(), new)
    (seen,) = torch.autograd.grad(small, kernel, grad_outputs=made)  # Rᵀ w', by the derivative of resizing itself
    torch.testing.assert_close(resized_images(seen - kernel.detach(), new), torch.zeros_like(made), rtol=0, atol=1e-9)
    assert (seen - kernel).abs().max() > 0.01


def test_half_precision_kernels_stay_so() -> None:
    """A student of a bfloat16 teacher is a bfloat16 student, and the inverse itself must not be taken in bfloat16."""
    kernel = drawn(2, 3, 16, 16)
    made = resized_patch_kernel(kernel.bfloat16(), (24, 24))
    assert made.dtype == torch.bfloat16
    exact = resized_patch_kernel(kernel.bfloat16().double(), (24, 24))
    torch.testing.assert_close(made, exact.bfloat16(), rtol=0, atol=0)


def test_special_positions_stay_and_the_others_follow_rows_and_columns() -> None:
    """A position that tells the column only must still do so: mixed up, rows and columns give smooth nonsense."""
    special, columns = drawn(1, 2, 4), drawn(1, 1, 3, 4, seed=1)
    grid = columns.expand(1, 2, 3, 4).reshape(1, 6, 4)  # (1, 2 x 3, D): both rows alike
    made = resized_positions(torch.cat([special, grid], dim=1), (2, 3), (5, 3))
    assert made.shape == (1, 2 + 15, 4)
    assert torch.equal(made[:, :2], special)
    torch.testing.assert_close(made[:, 2:].reshape(1, 5, 3, 4), columns.expand(1, 5, 3, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_grids_change_nothing(dtype: torch.dtype) -> None:
    """In any precision: what need not be interpolated is not touched."""
    positions, table = drawn(1, 13, 4).to(dtype), drawn(7 * 5 + 3, 2).to(dtype)
    assert torch.equal(resized_positions(positions, (4, 3), (4, 3)), positions)
    assert torch.equal(resized_bias_table(table, (4, 3), (4, 3)), table)


def test_positions_may_be_the_rows_of_an_embedding() -> None:
    """CLIP and SigLIP keep them as the weight of an embedding, without a batch dimension."""
    positions = drawn(5, 4)
    assert torch.equal(
        resized_positions(positions, (2, 2), (3, 3)), resized_positions(positions[None], (2, 2), (3, 3))[0]
    )


def test_biases_of_the_class_token_stay() -> None:
    """The last three rows of BEiT's table are no distances; interpolated with them they would leak into each other."""
    table = drawn(3 * 5 + 3, 2)
    made = resized_bias_table(table, (2, 3), (4, 3))
    assert made.shape == (7 * 5 + 3, 2)
    assert torch.equal(made[-3:], table[-3:])
    table[-3:] += 1
    assert torch.equal(resized_bias_table(table, (2, 3), (4, 3))[:-3], made[:-3])


def test_too_few_positions_are_refused() -> None:
    """A table that is not of these patches must not be cut to fit."""
    with pytest.raises(ValueError, match="3 x 3 patches need 9 position embeddings or more, got 5"):
        resized_positions(drawn(1, 5, 4), (3, 3), (4, 4))
