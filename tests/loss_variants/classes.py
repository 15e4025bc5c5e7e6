"""The teacher's classes: decoupled, correlated, standardised, hard."""

from loss_variant import LOGITS, Variant
from toy_representations import TOKENS

from hfdistill.losses.response.correlation import CorrelationLoss
from hfdistill.losses.response.decoupled import DecoupledLoss
from hfdistill.losses.response.hard_label import HardLabelLoss
from hfdistill.losses.response.standardized import StandardizedLoss

VARIANTS = {
    "decoupled": Variant(DecoupledLoss, LOGITS),
    "decoupled, tokens": Variant(lambda: DecoupledLoss(1.0, 2.0, 1.0), LOGITS, head=TOKENS, classes=5),
    # of correlations the value at equality is 0 up to the 1e-8 in the denominator only
    "correlation": Variant(CorrelationLoss, LOGITS, zero_at_equality=False, additive=False),
    "correlation, tokens": Variant(
        lambda: CorrelationLoss(2.0, 2.0, 4.0, gather=True),
        LOGITS,
        zero_at_equality=False,
        additive=False,
        head=TOKENS,
        classes=5,
    ),
    "standardized": Variant(StandardizedLoss, LOGITS),
    "standardized, tokens": Variant(lambda: StandardizedLoss(1.0), LOGITS, head=TOKENS, classes=5),
    "hard label": Variant(HardLabelLoss, LOGITS, zero_at_equality=False),
    "hard label, tokens": Variant(HardLabelLoss, LOGITS, zero_at_equality=False, head=TOKENS),
}
