"""Learned transfer: every student layer from every teacher layer."""

from loss_variant import HIDDEN, PAIRS, Variant

from hfdistill.losses.feature.learned_transfer import LearnedTransferLoss

VARIANTS = {
    "learned transfer": Variant(
        lambda: LearnedTransferLoss(PAIRS), HIDDEN, trainable="always", zero_at_equality=False
    ),
}
