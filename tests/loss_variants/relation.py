"""Relations between the rows of a batch."""

from loss_variant import HIDDEN, LAST, LOGITS, PAIRS, Variant

from hfdistill.losses.relation.category_structure import CategoryStructureLoss
from hfdistill.losses.relation.correlation_congruence import CorrelationCongruenceLoss
from hfdistill.losses.relation.instance_graph import InstanceGraphLoss
from hfdistill.losses.relation.local_correlation import LocalCorrelationLoss
from hfdistill.losses.relation.probabilistic import ProbabilisticTransferLoss
from hfdistill.losses.relation.relational import AngleRelationLoss, DistanceRelationLoss
from hfdistill.losses.relation.similarity import SimilarityPreservingLoss

WITH_LOGITS = (HIDDEN[0] | LOGITS[0], HIDDEN[1] | LOGITS[1])

VARIANTS = {
    "rkd distance": Variant(DistanceRelationLoss, LAST, additive=False, single_row=False),
    "rkd distance, two layers, cls": Variant(
        lambda: DistanceRelationLoss(PAIRS, pooling="cls"), HIDDEN, additive=False, single_row=False
    ),
    "rkd angle": Variant(AngleRelationLoss, LAST, additive=False, single_row=False),
    "rkd angle, one vertex": Variant(lambda: AngleRelationLoss(vertices=1), LAST, additive=False, single_row=False),
    "sp": Variant(SimilarityPreservingLoss, LAST, additive=False, single_row=False),
    "sp, centred": Variant(lambda: SimilarityPreservingLoss(centre=True), LAST, additive=False, single_row=False),
    "pkt": Variant(
        ProbabilisticTransferLoss,
        LAST,
        flat_at_equality=False,  # 1e-7 within the logarithm
        additive=False,
        single_row=False,
    ),
    "cc": Variant(CorrelationCongruenceLoss, LAST, additive=False, single_row=False),
    "irg": Variant(lambda: InstanceGraphLoss(PAIRS), WITH_LOGITS, additive=False, smooth=False),
    "irg, through the largest": Variant(
        lambda: InstanceGraphLoss(PAIRS, detach_max=False), WITH_LOGITS, additive=False
    ),
    "irg, edges": Variant(
        lambda: InstanceGraphLoss([(-1, -1)], vertices=0.0, transformations=0.0),
        LAST,
        additive=False,
        single_row=False,
        smooth=False,
    ),
    "cskd, features": Variant(CategoryStructureLoss, LAST, trainable="widths", additive=False, single_row=False),
    "cskd, centres": Variant(
        lambda: CategoryStructureLoss(intra=0.0), LAST, trainable="widths", additive=False, single_row=False
    ),
    "cskd, logits": Variant(
        lambda: CategoryStructureLoss(target="logits", reduction="paper"),
        LOGITS,
        additive=False,
        single_row=False,
    ),
    "cskd, compact": Variant(
        lambda: CategoryStructureLoss(target="logits", compactness=0.1),
        LOGITS,
        zero_at_equality=False,
        additive=False,
        single_row=False,
    ),
    "cskd, correct only": Variant(
        lambda: CategoryStructureLoss(correct_only=True),
        (LAST[0] | LOGITS[0], LAST[1] | LOGITS[1]),
        trainable="widths",
        additive=False,
        single_row=False,  # both sides are right, or wrong, about the row
        smooth=False,
    ),
    "lcc": Variant(lambda: LocalCorrelationLoss(PAIRS, parts=2), HIDDEN, additive=False),
    "lcc, one part": Variant(lambda: LocalCorrelationLoss(parts=1), LAST, additive=False, single_row=False),
}
