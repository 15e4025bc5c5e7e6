"""Knowledge review."""

from loss_variant import HIDDEN, PAIRS, Variant

from hfdistill.losses.feature.review import ReviewLoss

VARIANTS = {
    "review": Variant(lambda: ReviewLoss(PAIRS), HIDDEN, zero_at_equality=False, trainable="always", additive=True),
    "review, pooled level": Variant(
        lambda: ReviewLoss(PAIRS, pooled="cls"), HIDDEN, zero_at_equality=False, trainable="always"
    ),
}
