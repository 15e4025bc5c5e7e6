"""Tensors of an image model that hang on its patches, made for other patches: positions, biases, the projection.

Pure functions of tensors; which tensors of a model they are for, `students` knows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

Size = tuple[int, int]
"""Rows and columns."""


def resized_positions(positions: Tensor, grid: Size, new_grid: Size) -> Tensor:
    """Position embeddings for another grid of patches: interpolated (bicubic), those before the first patch kept.

    It is what ViT does itself when it is given larger images (`interpolate_pos_encoding`), done once. Positions are
    interpolated in float32 or wider and given back in their own dtype.

    Args:
        positions: (..., S + N, D): S positions of special tokens, then the N patches row by row.
        grid: rows and columns of the N patches.
        new_grid: rows and columns wanted.

    Returns:
        (..., S + N', D).

    Raises:
        ValueError: there are fewer positions than patches in `grid`.
    """
    special = positions.shape[-2] - grid[0] * grid[1]
    if special < 0:
        raise ValueError(
            f"{grid[0]} x {grid[1]} patches need {grid[0] * grid[1]} position embeddings or more, got "
            f"{positions.shape[-2]}: interpolation needs to know where on the image each one stands."
        )
    patches = _interpolated(positions[..., special:, :], grid, new_grid, "bicubic")
    return torch.cat([positions[..., :special, :], patches], dim=-2)


def resized_bias_table(table: Tensor, grid: Size, new_grid: Size) -> Tensor:
    """A table of relative position biases (BEiT) for another grid: interpolated (bilinear), as BEiT itself does.

    Args:
        table: (R + 3, H): the biases of R = (2 rows - 1)(2 columns - 1) distances for H heads, then the three of pairs
            with the class token.
        grid: rows and columns of patches.
        new_grid: rows and columns wanted.

    Returns:
        (R' + 3, H).
    """
    distances, new_distances = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (grid, new_grid))
    between = _interpolated(table[:-3], distances, new_distances, "bilinear")
    return torch.cat([between, table[-3:]])


def resized_patch_kernel(kernel: Tensor, size: Size) -> Tensor:
    """The kernel of a patch projection for patches of another size: <resize(x), w'> = <x, w>, as nearly as can be.

    Resizing a patch is linear, x' = R x, so the kernel wanted solves Rᵀ w' = w. Its solution of least squares and
    least norm is w' = (Rᵀ)⁺ w, which is exact for every x where patches grow; where they shrink, it is the best on
    average over patches of white noise. Bilinear resizing works on rows and columns apart (R = R₁ ⊗ R₂), so two small
    inverses do. Beyer et al. 2023, FlexiViT, https://arxiv.org/abs/2212.08013, section 3.4; where patches shrink,
    they are resized here with the filter that image processors use, which averages over all pixels.

    Args:
        kernel: (D, C, rows, columns).
        size: rows and columns wanted, in pixels.

    Returns:
        (D, C, *size), as `kernel` in dtype and device; computed in float64.
    """
    rows, columns = (
        torch.linalg.pinv(_resize_matrix(old, new)).T for old, new in zip(kernel.shape[2:], size, strict=True)
    )
    wide = kernel.to("cpu", torch.float64)  # not every device has float64
    resized: Tensor = rows @ wide @ columns.T  # (D, C, *size)
    return resized.to(kernel)


def _interpolated(values: Tensor, grid: Size, new_grid: Size, mode: str) -> Tensor:
    """Interpolate vectors that stand on a grid, row by row: (..., N, D) -> (..., N', D)."""
    width = values.shape[-1]
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    planes = wide.reshape(-1, *grid, width).permute(0, 3, 1, 2)  # (A, D, rows, columns)
    planes = nn.functional.interpolate(planes, size=new_grid, mode=mode, align_corners=False)
    flat = planes.permute(0, 2, 3, 1).reshape(*values.shape[:-2], -1, width)  # (..., N', D)
    return flat.to(values.dtype)


def _resize_matrix(old: int, new: int) -> Tensor:
    """The matrix (new, old) that resizes a line of pixels bilinearly."""
    lines = torch.eye(old, dtype=torch.float64)[None, None]  # (1, 1, old, old)
    resized = nn.functional.interpolate(lines, size=(new, old), mode="bilinear", antialias=True)
    return resized[0, 0]  # (new, old)
