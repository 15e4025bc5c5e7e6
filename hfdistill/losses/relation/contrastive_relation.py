"""Contrast of relations with a memory of all training rows: CRCD (Zhu et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hfdistill.functional.contrastive import relation_similarity
from hfdistill.losses.base import choose
from hfdistill.losses.layerwise import Layers
from hfdistill.losses.memory import MemoryContrastLoss
from hfdistill.losses.method import Method, Paper
from hfdistill.schedules import Schedule


class ContrastiveRelationLoss(MemoryContrastLoss):
    """Tell where the teacher's vector of the same row lies, seen from an anchor, from where those of K other rows lie.

    As ContrastiveMemoryLoss, with relations in place of vectors: for each row i and each anchor a_j, what the other
    side's memory holds of row j of the batch, p = exp(<unit(M[k] - a_j + 1e-6), unit(v_i - a_j + 1e-6)> / T) / Z over
    the row itself and K negatives k; L is the same noise-contrastive loss, averaged over the B * B pairs of row and
    anchor. A row's own anchor is its own positive, whose relation to itself has no direction.

    Zhu et al. 2021, Complementary Relation Contrastive Distillation, https://arxiv.org/abs/2103.16367, section 3, by
    the authors' code, which they call incomplete. The paper's second relation, between gradients, is left out.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher); B * B * (K + 1) similarities; memories 2 x (rows,
    dimension), in every checkpoint. The anchors are those of a process's own batch.

    Args:
        negatives: K, from rows of other classes, or from all other rows where rows have no class or all have one; at
            most the number of training rows less 1.
        temperature: T > 0, which divides the cosines.
        momentum: share of what was remembered before, in [0, 1).
        positives: "exact" takes the row itself, "relax" any row of its class, each time drawn anew.
        own_anchor: "drop" leaves the pairs of a row and its own anchor out, so that one row alone gives 0; "keep"
            counts them, as the code does.
        dimension: D of the common space.
        layers: which student layer learns from which teacher layer; each pair has embedding layers and memories.
        pooling: "mean" of the real tokens, "cls", or "last" real token.
        weight: see DistillationLoss.

    Raises:
        ValueError: a keyword out of its range; a layer map that does not fit the two depths; no `bind_data` before the
            first batch; training batches without an index.
    """

    method = Method(
        papers=(
            Paper(
                "Zhu et al.",
                2021,
                "Complementary Relation Contrastive Distillation",
                "https://arxiv.org/abs/2103.16367",
            ),
        ),
        evidence=("crcd/loss",),
        restrictions=(
            "a training set whose rows can be numbered: no streams",
            "remembers 8 * dimension bytes for each training row, in every checkpoint too",
            "anchors are the rows of the micro-batch: its value depends on the batch size",
            "at least 2 rows in a batch",
        ),
        unverified="the authors call their published code incomplete; the relation between gradients is left out",
    )
    fewest_rows: int = 2
    normalized: ClassVar[bool] = True

    def __init__(
        self,
        negatives: int = 500,
        temperature: float = 0.05,
        momentum: float = 0.5,
        positives: str = "exact",
        own_anchor: str = "drop",
        dimension: int = 128,
        layers: Layers = ((-1, -1),),
        pooling: str = "mean",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(negatives, temperature, momentum, positives, dimension, layers, pooling, weight)
        self.own_anchor = choose("own_anchor", own_anchor, ("drop", "keep"))

    def similarities(self, vectors: Tensor, memory: Tensor, index: Tensor) -> Tensor:
        """(B, B, K + 1)."""
        return relation_similarity(vectors, memory, index, self.temperature)

    def counted(self, index: Tensor, rows: Tensor | None) -> Tensor:
        """(B, B) bool, the pairs of two real rows, one the anchor of the other."""
        positives = index[:, 0]
        rows = torch.ones_like(positives, dtype=torch.bool) if rows is None else rows
        pairs = rows[:, None] & rows
        return pairs if self.own_anchor == "keep" else pairs & (positives[:, None] != positives)
