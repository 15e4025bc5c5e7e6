"""Self-attention relations: how queries, keys and values relate the tokens (MiniLM, MiniLMv2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.functional.attention import relation_kl_of_pieces, relation_pieces
from hfdistill.functional.chunks import blockwise_mean
from hfdistill.functional.reductions import real_length, spared
from hfdistill.losses.layerwise import AttentionLoss, Layers
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import Attention, Batch, Needs
from hfdistill.schedules import Schedule

MINILM = ("query-key", "value-value")
"""MiniLM (2020): attention distributions and value relations."""
MINILM_V2 = ("query-query", "key-key", "value-value")
"""MiniLMv2 (2021): relations of queries, of keys and of values."""

_VECTORS = ("query", "key", "value")


class AttentionRelationLoss(AttentionLoss):
    """Match the relations between tokens that queries, keys and values draw.

    R(X, Y) = softmax(X Y^T / sqrt(d_r)) over the real keys, per relation head; L = sum over layers and relations of
    mean_rows 1 / (A_r n) sum over heads and real queries of KL(R_teacher || R_student). Widths and numbers of layers
    may differ; nothing is projected.

    Wang et al. 2020, MiniLM, https://arxiv.org/abs/2002.10957, equations 4 to 6 (`MINILM`, the models' own heads);
    Wang et al. 2021, MiniLMv2, https://arxiv.org/abs/2012.15828, section 3 (`MINILM_V2`, free relation heads). The
    value of MiniLMv2's sum is averaged over its three relations (weight 1/3 each); MiniLM's two terms are added.

    Shapes: queries, keys and values (B, H, N, d), the width H d being cut into `relation_heads` pieces.

    Args:
        layers: which student layer learns from which teacher layer; both papers use the last student layer.
        relations: pairs of "query", "key" and "value", such as "query-key".
        relation_heads: A_r; None takes the models' own heads, which must then agree. MiniLMv2 used 48 for a base-sized
            teacher (from memory, not verified).
        weights: one number per relation; None: 1 for MiniLM's relations, 1 / number of relations otherwise.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown relation; a width that the relation heads do not divide; heads that differ where
            `relation_heads` is None; a family that does not show its projections.
    """

    method = Method(
        papers=(
            Paper(
                "Wang et al.",
                2020,
                "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
                "https://arxiv.org/abs/2002.10957",
            ),
            Paper(
                "Wang et al.",
                2021,
                "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers",
                "https://arxiv.org/abs/2012.15828",
            ),
        ),
        evidence=(
            "minilm/relation",
            "minilm/v1",
            "minilm/v2",
            "written out row by row in tests/losses/test_attention_relation.py",
        ),
        restrictions=(
            "relation heads that divide both widths, or equal numbers of heads",
            "families inside transformers' AttentionInterface only",
            "with grouped keys (Llama, Qwen) 'query-key' is not available, because the keys are narrower than the "
            "queries",
        ),
        unverified="48 relation heads as MiniLMv2's choice for a base-sized teacher",
    )

    def __init__(
        self,
        layers: Layers = ((-1, -1),),
        relations: Sequence[str] = MINILM_V2,
        relation_heads: int | None = None,
        weights: Sequence[float] | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight)
        self.relations = tuple(_parse_relation(relation) for relation in relations)
        added = tuple(relations) == MINILM
        default = (1.0 if added else 1.0 / max(len(self.relations), 1),) * len(self.relations)
        self.weights = default if weights is None else tuple(weights)
        if not self.relations or len(self.weights) != len(self.relations):
            raise ValueError(
                f"AttentionRelationLoss needs one weight per relation and at least one relation, got "
                f"{len(self.relations)} relations and {len(self.weights)} weights. Use relations={MINILM_V2}."
            )
        self.relation_heads = relation_heads

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map; refuse numbers of relation heads that do not fit."""
        super().bind(student, teacher)
        for ours, theirs in self.pairs:
            widths = student.attended_width(ours), teacher.attended_width(theirs)
            heads = student.heads_of(ours), teacher.heads_of(theirs)
            if self.relation_heads is None and heads[0] != heads[1]:
                raise ValueError(
                    f"AttentionRelationLoss takes the models' own heads, got {heads[0]} (student) and {heads[1]} "
                    f"(teacher) in layers {ours} and {theirs}. Set relation_heads to a number that divides both "
                    f"widths, {widths[0]} and {widths[1]}."
                )
            number = heads[0] if self.relation_heads is None else self.relation_heads
            for name, width in zip(("student", "teacher"), widths, strict=True):
                if number < 1 or width % number:
                    divisors = [n for n in range(1, width + 1) if widths[0] % n == widths[1] % n == 0]
                    raise ValueError(
                        f"relation_heads={number} does not divide the {name}'s width {width}. Each relation head "
                        f"takes an equal piece of it. Numbers that divide both widths: {divisors}."
                    )

    def needs_of(self, layers: frozenset[int]) -> Needs:
        """Queries, keys and values."""
        return Needs(projections=layers)

    def compare(self, student: Attention, teacher: Attention, mask: Tensor | None) -> Tensor:
        """Weighted sum over the relations of one pair of layers."""
        # the student's own heads are the teacher's too: see bind
        heads = self.relation_heads or (student.query.shape[1] if student.query is not None else 0)
        mask = spared(mask)
        values = [
            weight * _difference([side.merged(name) for side in (student, teacher) for name in pair], heads, mask)
            for pair, weight in zip(self.relations, self.weights, strict=True)
        ]
        return torch.stack(values).sum()

    def count(self, batch: Batch) -> Tensor:
        """Rows: each is averaged over its own tokens first."""
        return batch.row_count()


def _difference(vectors: Sequence[Tensor], heads: int, mask: Tensor | None) -> Tensor:
    """Of one relation between vectors (B, N, D): left and right of the student, then of the teacher."""
    pieces = [relation_pieces(side, heads) for side in vectors]
    rows, _, tokens, _ = pieces[0].shape

    def of_block(*parts: Tensor) -> tuple[Tensor, Tensor | int]:
        # after the last real token of a block everything would be computed to be left out
        kept = tokens if mask is None else real_length(parts[-1][:, 0])
        left, right, taught_left, taught_right = (part[:, :, :kept] for part in parts[:4])
        own = None if mask is None else spared(parts[-1][:, 0, :kept])
        real = len(left) if own is None else own.bool().any(1).sum()
        return relation_kl_of_pieces((left, right), (taught_left, taught_right), own), real * left.shape[1]

    every = [] if mask is None else [mask[:, None]]  # (B, 1, N)
    return blockwise_mean(of_block, pieces[:2], pieces[2:] + every, (rows, heads, tokens, tokens))


def _parse_relation(relation: str) -> tuple[str, str]:
    left, _, right = relation.partition("-")
    if left not in _VECTORS or right not in _VECTORS:
        raise ValueError(
            f"a relation is two of {', '.join(_VECTORS)} joined by '-', got {relation!r}. MiniLM: {MINILM}, MiniLMv2: "
            f"{MINILM_V2}."
        )
    return left, right
