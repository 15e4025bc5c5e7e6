"""Oracles of relations between the samples of a batch."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hfdistill.functional.categories import category_inter, category_intra
from hfdistill.functional.local import local_correlation, map_patches
from hfdistill.functional.relation import (
    angle_relation,
    correlation_congruence,
    distance_relation,
    instance_edges,
    layer_transformation,
    probabilistic_transfer,
    similarity_preserving,
)
from hfdistill.functional.response import logit_mse


def irg(
    s_layers: Sequence[Any],
    t_layers: Sequence[Any],
    s_logits: Tensor,
    t_logits: Tensor,
    w_v: float = 0.1,
    w_e: float = 5.0,
    w_t: float = 5.0,
) -> Tensor:
    """The case's value is that of a code that derives the largest distance too.

    As in InstanceGraphLoss samples move from each layer to the next, where both have one shape.
    """
    ours, theirs = ([torch.as_tensor(layer).to(s_logits) for layer in layers] for layers in (s_layers, t_layers))
    edges = [instance_edges(s, t, detach_max=False) for s, t in zip(ours, theirs, strict=True)]
    steps = zip(pairwise(ours), pairwise(theirs), strict=True)
    moves = [
        layer_transformation(*own, *other, detach_max=False)
        for own, other in steps
        if own[0].shape == own[1].shape and other[0].shape == other[1].shape
    ]
    return w_v * logit_mse(s_logits, t_logits) + w_e * torch.stack(edges).mean() + w_t * torch.stack(moves).mean()


def lcc(s: Tensor, t: Tensor, k: int = 4) -> tuple[Tensor, ...]:
    return local_correlation(map_patches(s, k), map_patches(t, k))


ORACLES: dict[str, Callable[..., Any]] = {
    "rkd_distance": lambda s, t, mask=None: distance_relation(s, t, mask),
    "rkd_angle": lambda s, t, mask=None: angle_relation(s, t, mask),
    "sp": lambda s, t, mask=None: similarity_preserving(s, t, mask),
    "pkt": lambda s, t, mask=None: probabilistic_transfer(s, t, mask),
    "cc_gauss": lambda s, t, gamma=0.4, P=2, mask=None: correlation_congruence(s, t, mask, gamma, P),
    "irg": irg,
    "cskd_inter": lambda s, t, y, K=None, mask=None: category_inter(s, t, y, mask, "paper"),
    "cskd_intra": lambda s, t, y, K=None, mask=None: category_intra(s, t, y, mask),
    "lcc": lcc,
}
