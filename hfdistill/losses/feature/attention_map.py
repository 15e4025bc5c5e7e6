"""Attention maps: raw scores or probabilities of mapped layers (TinyBERT, MobileBERT)."""

from __future__ import annotations

from torch import Tensor

from hfdistill import functional
from hfdistill.anatomy import Anatomy
from hfdistill.losses.base import choose
from hfdistill.losses.layerwise import AttentionLoss, Layers
from hfdistill.representations import Attention, Batch, Needs
from hfdistill.schedules import Schedule


class AttentionMapLoss(AttentionLoss):
    """Match the teacher's attention maps at mapped layers.

    target="scores": L = sum over pairs of layers of the mean over heads and valid (query, key) pairs of (A_s - A_t)^2,
    where A = Q K^T / sqrt(d) before mask and softmax. target="probabilities" compares softmax(A) instead: "mse" over
    the same pairs, or "kl", the mean over heads and valid queries of KL(teacher || student). Padding never counts.

    Jiao et al. 2020, TinyBERT, https://arxiv.org/abs/1909.10351, equation 7 (scores); Sun et al. 2020, MobileBERT,
    https://arxiv.org/abs/2004.02984, equation 2 (KL of probabilities). reduction="tinybert" is the authors' code: it
    averages over the padded square with padded keys set to 0, so its value depends on the length of the padding.

    Shapes: attention (B, H, N, N) on both sides.

    Args:
        layers: which student layer learns from which teacher layer, 1 is the first.
        target: "scores" or "probabilities".
        divergence: "mse", or "kl" with probabilities.
        heads: "match" compares head by head; "mean" averages over heads first, for different numbers of heads.
        reduction: "mean" over valid pairs; "tinybert", see above, with scores only.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown keyword value; numbers of heads that differ; a family without attention.
    """

    def __init__(
        self,
        layers: Layers = "uniform",
        target: str = "scores",
        divergence: str = "mse",
        heads: str = "match",
        reduction: str = "mean",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight)
        self.target = choose("target", target, ("scores", "probabilities"))
        self.divergence = choose("divergence", divergence, ("mse", "kl"))
        self.heads = choose("heads", heads, ("match", "mean"))
        self.reduction = choose("reduction", reduction, ("mean", "tinybert"))
        if target == "scores" and divergence == "kl":
            raise ValueError(
                "divergence='kl' needs target='probabilities': raw scores are not a distribution. Use "
                "target='probabilities', or divergence='mse'."
            )
        if reduction == "tinybert" and target != "scores":
            raise ValueError("reduction='tinybert' is about raw scores. Use it with target='scores', or leave it out.")

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map; refuse numbers of heads that do not correspond."""
        super().bind(student, teacher)
        if (
            self.heads == "match"
            and student.heads != teacher.heads
            and "none"
            not in (
                student.attention,
                teacher.attention,
            )
        ):
            raise ValueError(
                f"AttentionMapLoss compares head by head, got {student.heads} heads (student) and {teacher.heads} "
                "(teacher). A head without a partner has nothing to learn. Use heads='mean', AttentionRelationLoss "
                f"(any number of heads), or a student with num_attention_heads={teacher.heads}."
            )

    def needs_of(self, layers: frozenset[int]) -> Needs:
        """Scores need queries and keys; probabilities can come from either."""
        if self.target == "scores":
            return Needs(projections=layers)
        return Needs(attention_probabilities=layers)

    def compare(self, student: Attention, teacher: Attention, mask: Tensor | None) -> Tensor:
        """The difference of one pair of maps."""
        if self.target == "probabilities":
            ours, theirs = self._mean(student.probabilities), self._mean(teacher.probabilities)
            divergence = (
                functional.attention_probability_kl
                if self.divergence == "kl"
                else functional.attention_probability_mse
            )
            return divergence(ours, theirs, mask)
        ours, theirs = self._mean(student.scores), self._mean(teacher.scores)
        if self.reduction == "tinybert":
            if mask is not None:  # the reference's additive mask, which it then zeroes on both sides
                padded_keys = ~mask.bool()[:, None, None, :]  # (B, 1, 1, N)
                ours, theirs = ours.masked_fill(padded_keys, -1e4), theirs.masked_fill(padded_keys, -1e4)
            return functional.attention_score_mse_tinybert(ours, theirs)
        return functional.attention_score_mse(ours, theirs, mask, _both(student.allowed, teacher.allowed))

    def count(self, batch: Batch) -> Tensor:
        """Pairs of real tokens; rows for the reference's padded square; real queries for the KL."""
        if self.reduction == "tinybert":
            return batch.row_count()
        return batch.token_count() if self.divergence == "kl" else batch.pair_count()

    def _mean(self, attention: Tensor) -> Tensor:
        return attention.mean(dim=1, keepdim=True) if self.heads == "mean" else attention  # (B, 1 or H, N, N)


def _both(ours: Tensor | None, theirs: Tensor | None) -> Tensor | None:
    if ours is None or theirs is None:
        return theirs if ours is None else ours
    return ours & theirs
