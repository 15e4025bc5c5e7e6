"""What changes from stage to stage of an image model (Swin, ConvNeXt, ResNet): width, grid, heads, attention windows.

Every family names these sizes in its own way, so they are read off one pass of an empty copy of the architecture:
shapes without numbers (PyTorch's meta device), a fraction of a second, once for each architecture. Nothing here looks
at a model's weights, and nothing compares.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_IMAGE_SIZE = 224  # of families without one in their configuration (ResNet): any size gives the same widths


class Window(NamedTuple):
    """Which places of an image attend to each other.

    Attributes:
        windows: in an image.
        places: places in each.
        shifted: whether the windows lie half a window off, as in every second block of Swin.
    """

    windows: int
    places: int
    shifted: bool = False


@dataclass(frozen=True)
class VisionStages:
    """The sizes of each stage, numbered as hidden states are: 0 the embedding output, 1..L the outputs of the stages.

    Args:
        widths: of the states 0 to L.
        grids: rows and columns of the states 0 to L; nominal where a configuration has no image size.
        heads: attention heads of the stages 1 to L; empty without attention.
        windows: of the last block of each of the stages 1 to L; empty without attention.
        calls: how often attention was called up to the end of each of the stages 1 to L.
    """

    widths: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    heads: tuple[int, ...] = ()
    windows: tuple[Window, ...] = ()
    calls: tuple[int, ...] = ()


def read_stages(kind: type, config: Any, attended: bool) -> VisionStages | None:
    """The stages of an architecture; None, and a warning once, where one pass of it does not show them.

    Args:
        kind: the model's class.
        config: its configuration, with `depths`, the blocks of each stage.
        attended: whether the family has attention.
    """
    return _read(_Architecture(kind, config.to_json_string(use_diff=False), attended, config))


@dataclass(frozen=True)
class _Architecture:
    """What `_read` remembers by: equal where the class and all that the configuration says are."""

    kind: type
    text: str
    attended: bool
    config: Any = field(compare=False)


@lru_cache(maxsize=128)
def _read(architecture: _Architecture) -> VisionStages | None:
    config = copy.deepcopy(architecture.config)
    blocks = list(config.depths)
    config.depths = [1] * len(blocks)  # a block keeps the shapes of its stage
    try:
        states, maps, attentions = _shown(architecture.kind, config, architecture.attended)
        if len(states) != len(blocks) + 1:
            raise ValueError(f"{len(states)} hidden states for {len(blocks)} stages")
        grids = tuple(_sides(*pair) for pair in zip(states, maps, strict=True))
    except Exception as error:  # noqa: BLE001 whatever an unknown architecture raises: losses on logits still work
        logger.warning(
            "%s has stages whose sizes cannot be read off a pass without numbers (%s): losses on hidden states and "
            "attention are not available for it, losses on logits are.",
            architecture.kind.__name__,
            error,
        )
        return None
    shown = len(attentions) == len(blocks)
    return VisionStages(
        widths=tuple(_width(state) for state in states),
        grids=grids,
        heads=tuple(attention.shape[1] for attention in attentions) if shown else (),
        windows=tuple(_window(*pair) for pair in zip(attentions, blocks, strict=True)) if shown else (),
        calls=tuple(accumulate(blocks)) if shown else (),
    )


def _shown(kind: type, config: Any, attended: bool) -> tuple[tuple[Tensor, ...], ...]:
    """Hidden states, the same as maps where the family has both forms, and attention, of one image: shapes alone."""
    config._attn_implementation = "eager"  # the only one that returns attention, and every family has it
    values = config.to_dict()
    size = values.get("image_size") or _IMAGE_SIZE
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    asked = {"output_hidden_states": True} | ({"output_attentions": True} if attended else {})
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        model = kind(config).eval()
        output: Mapping[str, Any] = model(pixel_values=torch.zeros(1, values.get("num_channels", 3), *sides), **asked)
    states = tuple(output["hidden_states"])
    return states, tuple(output.get("reshaped_hidden_states") or states), tuple(output.get("attentions") or ())


def _width(state: Tensor) -> int:
    """D of a state (B, D, rows, columns) or (B, N, D)."""
    return state.shape[1] if state.dim() == 4 else state.shape[-1]


def _sides(state: Tensor, reshaped: Tensor) -> tuple[int, int]:
    """Rows and columns of a state (B, D, rows, columns), or of one (B, N, D), as a map or a square."""
    if reshaped.dim() == 4 and reshaped.numel() == state.numel() and reshaped.shape[1] == _width(state):
        return reshaped.shape[2], reshaped.shape[3]
    side = math.isqrt(state.shape[1])
    if state.dim() != 3 or side * side != state.shape[1]:
        raise ValueError(f"a hidden state of shape {[*state.shape]}, which is no map and no square of places")
    return side, side


def _window(attention: Tensor, blocks: int) -> Window:
    """The window of a stage's last block, whose attention is (windows, H, places, places)."""
    count = attention.shape[0]
    return Window(count, attention.shape[-1], shifted=count > 1 and blocks % 2 == 0)
