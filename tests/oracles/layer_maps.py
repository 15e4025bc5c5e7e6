"""Oracles of layer maps."""

from collections.abc import Callable
from typing import Any

from hfdistill.layer_map import LayerMap


def map_uniform(Ls: int, Lt: int) -> list[list[tuple[int, int]]]:
    pairs = LayerMap.uniform().resolve(Ls, Lt)
    attention = LayerMap.uniform().without_embeddings().resolve(Ls, Lt)
    return [list(pairs), [(student - 1, teacher - 1) for student, teacher in attention]]


def map_dynabert(n: int, m: float) -> list[int]:
    return [teacher for _, teacher in LayerMap.dynabert(m).resolve(round(m * n), n)]


ORACLES: dict[str, Callable[..., Any]] = {
    "map_uniform": map_uniform,
    "map_pkd_skip": lambda Ls, Lt: LayerMap.skip().resolve(Ls, Lt),
    "map_pkd_last": lambda Ls, Lt: LayerMap.last(final=False).resolve(Ls, Lt),
    "map_dynabert": map_dynabert,
}
