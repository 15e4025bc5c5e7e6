"""Contextual knowledge: how tokens lie to each other, and how a token moves through the layers (CKD)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.functional.context import cosine_row_kl, relation_angle, relative_distance_mse, triple_count
from hfdistill.losses.base import choose
from hfdistill.losses.layerwise import Layers, LayerwiseLoss
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import Batch, Representations
from hfdistill.schedules import Schedule

_CKD = Paper(
    "Park et al.",
    2021,
    "Distilling Linguistic Context for Language Model Compression",
    "https://arxiv.org/abs/2109.08359",
)
_RELATIONS: dict[str, Callable[..., Tensor]] = {
    "distance": relative_distance_mse,
    "cosine": cosine_row_kl,
    "angle": relation_angle,
}


class TokenRelationLoss(LayerwiseLoss):
    """Word relation: how the tokens of a sentence lie to each other, pair by pair or triple by triple.

    relation="distance": mean over layers and valid pairs of (d_s - d_t)^2, d the squared L2 distance of two tokens
    over its mean in the sentence. "cosine": KL of the distributions softmax_j cos(i, j) over the other tokens,
    summed, by the number of valid pairs. "angle": mean over layers and valid triples of smooth L1 between the cosines
    of the angles at token i between j and k, which are at most (window - 1) / 2 places away. Nothing is projected.

    Park et al. 2021, Distilling Linguistic Context for Language Model Compression (CKD),
    https://arxiv.org/abs/2109.08359, and the authors' code: smooth L1 is one of its options, its flag `squared` means
    the opposite, and its window counts the tokens at the ends of a sentence several times, which this does not.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher).

    Args:
        layers: which student layer learns from which teacher layer.
        relation: "distance" or "cosine" (pairs), or "angle" (triples).
        window: tokens around each that "angle" looks at, itself included, odd; None: all, at a cost of N^3.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown relation; an even window; a layer map that does not fit the two depths.
    """

    method = Method(
        papers=(_CKD,),
        evidence=("ckd/wr_pair", "ckd/wr_angle"),
        restrictions=(
            "the same tokens on both sides, or two image models",
            "a sentence of one token has no relations",
        ),
        unverified="which of its code's distances and differences the paper's results were made with",
    )
    projects: ClassVar[bool] = False

    def __init__(
        self,
        layers: Layers = "uniform",
        relation: str = "distance",
        window: int | None = 21,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight=weight)
        self.relation = choose("relation", relation, tuple(_RELATIONS))
        if window is not None and (window < 3 or window % 2 == 0):
            raise ValueError(
                f"window must be odd and at least 3, got {window}: as many before a token as after it. CKD uses 21."
            )
        self.window = window

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Mean of `compare` over the mapped layers, which is what the authors' weights are meant for."""
        return super().forward(student, teacher, batch) / len(self.pairs)

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """The relations of one pair of layers."""
        angle = partial(relation_angle, window=self.window)
        return (angle if self.relation == "angle" else _RELATIONS[self.relation])(student, teacher, mask)

    def count(self, batch: Batch) -> Tensor:
        """Pairs or triples of real tokens."""
        if self.relation != "angle":
            return batch.pair_count()
        return batch.row_count() if batch.mask is None else triple_count(batch.mask, self.window).float()


class LayerRelationLoss(LayerwiseLoss):
    """Layer-transforming relation: how the states of one token at different layers lie to each other.

    The relations of TokenRelationLoss between the mapped layers of each real token instead of between the tokens of a
    layer: mean over tokens and pairs, or triples, of layers. Nothing is projected.

    Park et al. 2021, Distilling Linguistic Context for Language Model Compression (CKD),
    https://arxiv.org/abs/2109.08359, and the authors' code.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher), of at least 3 layers.

    Args:
        layers: which student layer learns from which teacher layer; the embedding output counts as one.
        relation: "distance" or "cosine" (pairs), or "angle" (triples).
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown relation; fewer than 3 pairs of layers; layers of one model that differ in width or grid
            (stages); a layer map that does not fit the two depths.
    """

    method = Method(
        papers=(_CKD,),
        evidence=("equal to TokenRelationLoss, held to ckd/wr_pair and ckd/wr_angle, with layers as tokens",),
        restrictions=(
            "at least 3 mapped layers, of one width and grid in each model",
            "the same tokens on both sides, or two image models",
        ),
        unverified="which of its code's distances and differences the paper's results were made with",
    )
    projects: ClassVar[bool] = False

    def __init__(self, layers: Layers = "uniform", relation: str = "distance", weight: float | Schedule = 1.0) -> None:
        super().__init__(layers, weight=weight)
        self.relation = choose("relation", relation, tuple(_RELATIONS))

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map; refuse one that leaves nothing to relate."""
        super().bind(student, teacher)
        if len(self.pairs) < 3:
            raise ValueError(
                f"LayerRelationLoss needs at least 3 pairs of layers, got {self.pairs}. Relative to its own mean the "
                "distance of two layers is always 1. Use layers='uniform', which has the embedding output too, or "
                "TokenRelationLoss."
            )
        for side, anatomy in enumerate((student, teacher)):
            layers = [pair[side] for pair in self.pairs]
            if len({(anatomy.width_of(layer), anatomy.grid_of(layer)) for layer in layers}) > 1:
                widths = [anatomy.width_of(layer) for layer in layers]
                raise ValueError(
                    f"LayerRelationLoss measures how far apart a token's states lie in different layers, got layers "
                    f"{layers} of {anatomy.family} with the widths {widths} and other places: between different "
                    "spaces there is no distance. Use TokenRelationLoss, which stays within a layer."
                )

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """`compare` of the states of all mapped layers."""
        ours, theirs, mask = [], [], batch.mask
        for position, (own, other) in enumerate(self.pairs):
            states = student.hidden_states[own], teacher.hidden_states[other]
            state, target, mask = self.aligned(position, *states, batch.mask)
            ours.append(state)
            theirs.append(target)
        return self.compare(torch.stack(ours, dim=2), torch.stack(theirs, dim=2), mask)  # (B, N, L, D)

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """The relations of L layers: (B, N, L, D_student), (B, N, L, D_teacher), mask (B, N)."""
        layers = None if mask is None else mask.bool()[..., None].expand(student.shape[:-1])  # (B, N, L)
        return _RELATIONS[self.relation](student, teacher, layers)
