"""Feature maps and attention as MobileBERT transfers them, and attention maps of merged heads."""

from loss_variant import HIDDEN, PAIRS, Variant

from hfdistill.losses.feature.attention_map import AttentionMapLoss
from hfdistill.losses.feature.feature_map import FeatureMapLoss
from hfdistill.representations import Needs

PROJECTIONS = (Needs(projections=frozenset({1, 2})), Needs(projections=frozenset({2, 4})))
PROBABILITIES = (Needs(attention_probabilities=frozenset({1, 2})), Needs(attention_probabilities=frozenset({2, 4})))

VARIANTS = {
    "feature map": Variant(lambda: FeatureMapLoss(PAIRS), HIDDEN, trainable="widths"),
    "feature map, progressive": Variant(
        lambda: FeatureMapLoss(PAIRS, progressive=0.5, shared_projector=True), HIDDEN, trainable="widths"
    ),
    "feature map, means": Variant(lambda: FeatureMapLoss(PAIRS, "mean"), HIDDEN),
    "feature map, variances": Variant(lambda: FeatureMapLoss(PAIRS, "variance"), HIDDEN),
    "map, scores cross-entropy": Variant(
        lambda: AttentionMapLoss(PAIRS, divergence="cross_entropy"), PROJECTIONS, zero_at_equality=False
    ),
    "map, scores cross-entropy of mean heads": Variant(
        lambda: AttentionMapLoss(PAIRS, divergence="cross_entropy", heads="mean"), PROJECTIONS, zero_at_equality=False
    ),
    "map, scores of summed heads": Variant(lambda: AttentionMapLoss(PAIRS, heads="sum"), PROJECTIONS),
    "map, scores progressive": Variant(lambda: AttentionMapLoss(PAIRS, progressive=0.5), PROJECTIONS),
    "map, probabilities cross-entropy": Variant(
        lambda: AttentionMapLoss(PAIRS, target="probabilities", divergence="cross_entropy"),
        PROBABILITIES,
        zero_at_equality=False,
    ),
    "map, probabilities of summed heads": Variant(
        lambda: AttentionMapLoss(PAIRS, target="probabilities", heads="sum"), PROBABILITIES
    ),
}
