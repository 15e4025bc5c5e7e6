"""Contrast with a memory, of vectors (CRD) and of relations (CRCD), and with the batch (InfoNCE)."""

from loss_variant import HIDDEN, LAST, PAIRS, Variant

from hfdistill.losses.relation.contrastive_memory import ContrastiveMemoryLoss
from hfdistill.losses.relation.contrastive_relation import ContrastiveRelationLoss
from hfdistill.losses.relation.in_batch_contrast import InBatchContrastLoss

# Negatives are drawn anew for every batch, so parts of a batch do not add up; and the constants of the first batch,
# which carry no gradient, are made anew for each value that the contract asks for: hence not smooth.
VARIANTS = {
    "crd": Variant(
        ContrastiveMemoryLoss, LAST, zero_at_equality=False, trainable="always", additive=False, smooth=False
    ),
    "crd, relaxed, layers": Variant(
        lambda: ContrastiveMemoryLoss(4, positives="relax", layers=PAIRS, dimension=8, pooling="cls"),
        HIDDEN,
        zero_at_equality=False,
        trainable="always",
        additive=False,
        smooth=False,
    ),
    "crcd": Variant(
        lambda: ContrastiveRelationLoss(layers=PAIRS),
        HIDDEN,
        zero_at_equality=False,
        trainable="always",
        additive=False,
        single_row=False,
        smooth=False,
    ),
    "crcd, own anchor": Variant(
        lambda: ContrastiveRelationLoss(own_anchor="keep"),
        LAST,
        zero_at_equality=False,
        trainable="always",
        additive=False,
        smooth=False,
    ),
    "infonce": Variant(
        InBatchContrastLoss,
        LAST,
        zero_at_equality=False,
        trainable="always",
        additive=False,
        single_row=False,
    ),
    "infonce, layers": Variant(
        lambda: InBatchContrastLoss(0.5, dimension=8, layers=PAIRS, pooling="last"),
        HIDDEN,
        zero_at_equality=False,
        trainable="always",
        additive=False,
        single_row=False,
    ),
}
