"""Attention maps: raw scores or probabilities of mapped layers (TinyBERT, MobileBERT)."""

from __future__ import annotations

from torch import Tensor

from hfdistill import functional
from hfdistill.anatomy import Anatomy
from hfdistill.functional.attention import pair_count, query_count
from hfdistill.functional.chunks import blockwise_mean
from hfdistill.functional.mobilebert import (
    attention_cross_entropy,
    attention_probability_cross_entropy,
    check_progressive,
    layer_in_turn,
)
from hfdistill.functional.reductions import real_length, spared
from hfdistill.losses.base import choose
from hfdistill.losses.layerwise import AttentionLoss, Layers, without_tokens
from hfdistill.losses.method import Method
from hfdistill.losses.papers import MOBILEBERT, TINYBERT
from hfdistill.representations import Attention, Batch, Needs, Representations
from hfdistill.schedules import Schedule

_OF_PROBABILITIES = {
    "mse": functional.attention_probability_mse,
    "kl": functional.attention_probability_kl,
    "cross_entropy": attention_probability_cross_entropy,
}


class AttentionMapLoss(AttentionLoss):
    """Match the teacher's attention maps at mapped layers.

    target="scores": L = sum over pairs of layers of the mean over heads and valid (query, key) pairs of (A_s - A_t)^2,
    where A = Q K^T / sqrt(d) before mask and softmax. target="probabilities" compares softmax(A) instead: "mse" over
    the same pairs, or "kl", the mean over heads and valid queries of KL(teacher || student). "cross_entropy" is that
    mean of -sum_keys softmax(A_t) log softmax(A_s), which has the gradient of the KL and is not 0 at equality, of
    scores or of probabilities. Padding never counts. With `progressive` only one layer learns at a time, from the
    first to the last, each for an equal share of the run, with 1 / number of layers.

    Jiao et al. 2020, TinyBERT, https://arxiv.org/abs/1909.10351, equation 7 (scores); Sun et al. 2020, MobileBERT,
    https://arxiv.org/abs/2004.02984, equation 2 (KL of probabilities; the authors' code has the cross-entropy of
    scores, and the turns). Heads added or averaged first: Yang et al. 2020, TextBrewer,
    https://arxiv.org/abs/2002.12620 (attention_mse_sum, attention_ce_mean). reduction="tinybert" is TinyBERT's code:
    it averages over the padded square with padded keys set to 0, so its value depends on the length of the padding.

    Shapes: attention (B, H, N, N) on both sides.

    Args:
        layers: which student layer learns from which teacher layer, 1 is the first.
        target: "scores" or "probabilities".
        divergence: "mse", "cross_entropy", or "kl" with probabilities.
        heads: "match" compares head by head; for different numbers of heads "mean" averages over them first, and
            "sum" adds them, with "mse" only, since a sum of distributions is none.
        reduction: "mean" over valid pairs; "tinybert", see above, with the "mse" of scores only.
        progressive: share of the run, in (0, 1], in which the layers take turns; None: all learn at once. After it the
            loss is 0; let the weight end there too.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown keyword value, or two that exclude each other; numbers of heads that differ; a family
            without attention.
    """

    method = Method(
        papers=(
            TINYBERT,
            MOBILEBERT,
        ),
        evidence=(
            "att_mse_masked",
            "tinybert_att/padded",
            "map/tinybert_4_12",
            "mobilebert/att_ce",
            "probabilities (MSE and KL), which have no golden value, written out row by row in "
            "tests/losses/test_attention_map.py",
        ),
        restrictions=(
            "equal numbers of heads, or heads='mean' or 'sum'",
            "scores need a family that goes through transformers' AttentionInterface: DeBERTa shows probabilities "
            "only, under eager attention",
            "reduction='tinybert' is the authors' code, whose value depends on the length of the padding",
            "with causal models or sliding windows micro-batches are weighed by n² pairs though fewer are compared",
        ),
    )

    def __init__(
        self,
        layers: Layers = "uniform",
        target: str = "scores",
        divergence: str = "mse",
        heads: str = "match",
        reduction: str = "mean",
        progressive: float | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight)
        self.target = choose("target", target, ("scores", "probabilities"))
        self.divergence = choose("divergence", divergence, ("mse", "kl", "cross_entropy"))
        self.heads = choose("heads", heads, ("match", "mean", "sum"))
        self.reduction = choose("reduction", reduction, ("mean", "tinybert"))
        self.progressive = progressive
        check_progressive(progressive)
        if target == "scores" and divergence == "kl":
            raise ValueError(
                "divergence='kl' needs target='probabilities': raw scores are not a distribution. Use "
                "target='probabilities', divergence='mse', or 'cross_entropy', which takes their softmax."
            )
        if reduction == "tinybert" and (target, divergence) != ("scores", "mse"):
            raise ValueError(
                "reduction='tinybert' is about raw scores and their squares. Use it with target='scores' and "
                "divergence='mse', or leave it out."
            )
        if heads == "sum" and divergence != "mse":
            raise ValueError(
                f"heads='sum' cannot go with divergence={divergence!r}: a sum of distributions is none. Use "
                "heads='mean', or divergence='mse'."
            )

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map; refuse numbers of heads that do not correspond."""
        super().bind(student, teacher)
        for ours, theirs in self.pairs if self.heads == "match" else ():
            heads = student.heads_of(ours), teacher.heads_of(theirs)
            if heads[0] != heads[1]:
                raise ValueError(
                    f"AttentionMapLoss compares head by head, got {heads[0]} heads (student) and {heads[1]} "
                    f"(teacher) in layers {ours} and {theirs}. A head without a partner has nothing to learn. Use "
                    "heads='mean', AttentionRelationLoss (any number of heads), or a student with "
                    f"num_attention_heads={heads[1]}."
                )

    def needs_of(self, layers: frozenset[int]) -> Needs:
        """Scores need queries and keys; probabilities can come from either."""
        if self.target == "scores":
            return Needs(projections=layers)
        return Needs(attention_probabilities=layers)

    def cached_needs(self) -> Needs:
        """Scores alone of the teacher, for short rows much less than queries and keys; or probabilities.

        Raises:
            ValueError: reduction="tinybert", which looks at padding, of which nothing is kept.
        """
        if self.reduction == "tinybert":
            raise ValueError(
                "AttentionMapLoss(reduction='tinybert') compares the scores of padding too, and padding is no part of "
                "what is kept of a row: the loss would be another one. Use reduction='mean', or a live teacher."
            )
        layers = frozenset(layer for _, layer in self.pairs)
        return Needs(attention_scores=layers) if self.target == "scores" else Needs(attention_probabilities=layers)

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum of `compare` over the mapped layers, or the layer's whose turn it is."""
        if self.progressive is None:
            return super().forward(student, teacher, batch)
        position, share = layer_in_turn(batch.progress, len(self.pairs), self.progressive)
        return share * self.compare(*self.shared(self.pairs[position], student, teacher), batch.mask)

    def compare(self, student: Attention, teacher: Attention, mask: Tensor | None) -> Tensor:
        """The difference of one pair of maps."""
        whole = self.heads != "match"
        if not student.shape or _without_heads(student, whole) != _without_heads(teacher, whole):
            return self._difference(student, teacher, mask)[0]  # which says what is wrong with them
        held = len(student.parts)

        def of_block(*parts: Tensor | None) -> tuple[Tensor, Tensor | int]:
            ours, theirs, rows = student.of_parts(*parts[:held]), teacher.of_parts(*parts[held:-1]), parts[-1]
            return self._difference(ours, theirs, None if rows is None else rows[:, 0])

        rows = None if mask is None else mask[:, None]  # (B, 1, N)
        return blockwise_mean(of_block, student.parts, (*teacher.parts, rows), student.shape, whole)

    def count(self, batch: Batch) -> Tensor:
        """Pairs of real tokens; rows for the reference's padded square; real queries for distributions."""
        if self.reduction == "tinybert":
            return batch.row_count()
        return batch.pair_count() if self.divergence == "mse" else batch.token_count()

    def _difference(self, student: Attention, teacher: Attention, mask: Tensor | None) -> tuple[Tensor, Tensor | int]:
        """The difference of two maps, and the number of values of which it is the mean."""
        if self.target == "probabilities":
            ours, theirs, mask = self._merged(student.probabilities), self._merged(teacher.probabilities), spared(mask)
            return _OF_PROBABILITIES[self.divergence](ours, theirs, mask), self._number(ours, mask, None)
        if self.reduction == "tinybert":
            ours, theirs, mask = self._merged(student.scores), self._merged(teacher.scores), spared(mask)
            if mask is not None:  # the reference's additive mask, which it then zeroes on both sides
                padded_keys = ~mask.bool()[:, None, None, :]  # (B, 1, 1, N)
                ours, theirs = ours.masked_fill(padded_keys, -1e4), theirs.masked_fill(padded_keys, -1e4)
            return functional.attention_score_mse_tinybert(ours, theirs), ours.numel()
        student, teacher, mask = _without_padding(student, teacher, mask)
        ours, theirs = self._merged(student.scores), self._merged(teacher.scores)
        mask, allowed = spared(mask), spared(_both(student.allowed, teacher.allowed))
        formula = attention_cross_entropy if self.divergence == "cross_entropy" else functional.attention_score_mse
        return formula(ours, theirs, mask, allowed), self._number(ours, mask, allowed)

    def _number(self, maps: Tensor, mask: Tensor | None, allowed: Tensor | None) -> Tensor | int:
        return (pair_count if self.divergence == "mse" else query_count)(maps, mask, allowed)

    def _merged(self, attention: Tensor) -> Tensor:
        if self.heads == "match":
            return attention
        summed = attention.sum(dim=1, keepdim=True)  # (B, 1, N, N)
        return summed / attention.shape[1] if self.heads == "mean" else summed


def _without_heads(attention: Attention, without: bool) -> tuple[int, ...]:
    """The shape of an attention, the number of its heads left out where it does not matter."""
    return attention.shape[:1] + attention.shape[1 + without :]


def _without_padding(
    student: Attention, teacher: Attention, mask: Tensor | None
) -> tuple[Attention, Attention, Tensor | None]:
    """Both sides up to the last real token of their rows: the rest would be computed to be left out."""
    if mask is None or student.shape[2:] != (mask.shape[1],) * 2:
        return student, teacher, mask
    kept, tokens = real_length(mask), mask.shape[1]
    return without_tokens(student, kept, tokens), without_tokens(teacher, kept, tokens), mask[:, :kept]


def _both(ours: Tensor | None, theirs: Tensor | None) -> Tensor | None:
    if ours is None or theirs is None:
        return theirs if ours is None else ours
    return ours & theirs
