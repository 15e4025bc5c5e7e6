"""Variational information."""

from loss_variant import HIDDEN, PAIRS, Variant

from hfdistill.losses.feature.variational import VariationalLoss

VARIANTS = {
    "variational": Variant(
        lambda: VariationalLoss(PAIRS),
        HIDDEN,
        zero_at_equality=False,  # the predictor maps equal states to others
        trainable="always",
    ),
}
