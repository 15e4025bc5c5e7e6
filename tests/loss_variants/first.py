"""The labels, soft targets, hidden states, patience, attention."""

from loss_variant import HIDDEN, LOGITS, PAIRS, Variant
from toy_representations import TOKENS

from hfdistill.losses import (
    AttentionMapLoss,
    AttentionRelationLoss,
    ContrastiveRepresentationLoss,
    HiddenStateLoss,
    PatienceLoss,
    SoftTargetLoss,
    TaskLoss,
)
from hfdistill.losses.relation.attention_relation import MINILM
from hfdistill.representations import Needs

LABELS = (Needs(logits=True), Needs())
PROJECTIONS = (Needs(projections=frozenset({1, 2})), Needs(projections=frozenset({2, 4})))
PROBABILITIES = (Needs(attention_probabilities=frozenset({1, 2})), Needs(attention_probabilities=frozenset({2, 4})))

VARIANTS = {
    "task": Variant(TaskLoss, LABELS, zero_at_equality=False),
    "task, smoothed": Variant(  # smoothing gives every class a share, also one that is shut out
        lambda: TaskLoss(label_smoothing=0.1), LABELS, zero_at_equality=False, shut_out=False
    ),
    "task, tokens": Variant(TaskLoss, LABELS, zero_at_equality=False, head=TOKENS),
    "soft kl": Variant(lambda: SoftTargetLoss(2.0), LOGITS),
    "soft kl, tokens": Variant(lambda: SoftTargetLoss(2.0), LOGITS, head=TOKENS),
    "soft cross-entropy": Variant(lambda: SoftTargetLoss(2.0, "cross_entropy"), LOGITS, zero_at_equality=False),
    "soft mse": Variant(lambda: SoftTargetLoss(2.0, "mse"), LOGITS),
    "hidden mse": Variant(lambda: HiddenStateLoss(PAIRS), HIDDEN, trainable="widths"),
    "hidden mse, one projector": Variant(
        lambda: HiddenStateLoss(PAIRS, shared_projector=True), HIDDEN, trainable="widths"
    ),
    "hidden cosine": Variant(lambda: HiddenStateLoss(PAIRS, metric="cosine"), HIDDEN, trainable="widths"),
    "patience, cls": Variant(lambda: PatienceLoss(PAIRS), HIDDEN, trainable="widths"),
    "patience, mean": Variant(
        lambda: PatienceLoss(PAIRS, pooling="mean", normalize=False), HIDDEN, trainable="widths"
    ),
    "patience, last": Variant(
        lambda: PatienceLoss(PAIRS, pooling="last", reduction="paper"), HIDDEN, trainable="widths"
    ),
    "map, scores": Variant(lambda: AttentionMapLoss(PAIRS), PROJECTIONS),
    "map, scores of mean heads": Variant(lambda: AttentionMapLoss(PAIRS, heads="mean"), PROJECTIONS),
    "map, probabilities mse": Variant(lambda: AttentionMapLoss(PAIRS, target="probabilities"), PROBABILITIES),
    "map, probabilities kl": Variant(
        lambda: AttentionMapLoss(PAIRS, target="probabilities", divergence="kl"), PROBABILITIES
    ),
    "relation, minilm v2": Variant(lambda: AttentionRelationLoss(PAIRS), PROJECTIONS),
    "relation, minilm v1": Variant(lambda: AttentionRelationLoss(PAIRS, MINILM, relation_heads=4), PROJECTIONS),
    "contrastive, mean": Variant(
        lambda: ContrastiveRepresentationLoss(PAIRS),
        HIDDEN,
        zero_at_equality=False,
        trainable="widths",
        additive=False,  # in-batch negatives are those of the micro-batch
    ),
    "contrastive, cls": Variant(
        lambda: ContrastiveRepresentationLoss(PAIRS, pooling="cls"),
        HIDDEN,
        zero_at_equality=False,
        trainable="widths",
        additive=False,
    ),
}
