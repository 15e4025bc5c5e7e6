"""Shaped supervision: conditional teacher, adjusted targets, triplets, a virtual teacher, prime-aware features."""

from loss_variant import HIDDEN, LOGITS, PAIRS, Variant
from toy_representations import TOKENS

from hfdistill.losses.feature.adaptive import PrimeAwareLoss
from hfdistill.losses.response.conditional import ConditionalTeacherLoss
from hfdistill.losses.response.knowledge_adjustment import AdjustedTargetLoss
from hfdistill.losses.response.lightweight_teacher import LightweightTeacherLoss
from hfdistill.losses.response.triplet import TripletLoss
from hfdistill.representations import Needs

LABELS = (Needs(logits=True), Needs())

VARIANTS = {
    "conditional": Variant(ConditionalTeacherLoss, LOGITS, zero_at_equality=False),
    "conditional, tokens": Variant(
        lambda: ConditionalTeacherLoss(2.0), LOGITS, zero_at_equality=False, head=TOKENS, classes=5
    ),
    # where the teacher errs the adjusted target is not its own answer
    "adjusted, shift": Variant(AdjustedTargetLoss, LOGITS, zero_at_equality=False),
    "adjusted, smoothing": Variant(
        lambda: AdjustedTargetLoss(2.0, "smoothing"), LOGITS, zero_at_equality=False, head=TOKENS, classes=5
    ),
    # one mean over the batch; the temperature itself moves with the student, without a gradient
    "adjusted, flsw": Variant(
        lambda: AdjustedTargetLoss(adjustment="none", dynamic="flsw"), LOGITS, additive=False, smooth=False
    ),
    "adjusted, cwsm": Variant(
        lambda: AdjustedTargetLoss(2.0, "smoothing", dynamic="cwsm", beta=2.0, scale_by_temperature=False),
        LOGITS,
        zero_at_equality=False,
        additive=False,
        smooth=False,
        head=TOKENS,
        classes=5,
    ),
    "triplet": Variant(TripletLoss, LOGITS, zero_at_equality=False, additive=False, single_row=False),
    "triplet, gathered": Variant(
        lambda: TripletLoss(2.0, gather=True), LOGITS, zero_at_equality=False, additive=False, single_row=False
    ),
    "lightweight": Variant(lambda: LightweightTeacherLoss(items=1), LABELS, zero_at_equality=False),
    "lightweight, tokens": Variant(
        lambda: LightweightTeacherLoss(2.0, items=1), LABELS, zero_at_equality=False, head=TOKENS, classes=5
    ),
    # which points are drawn depends on how many rows draw
    "lightweight, drawn": Variant(LightweightTeacherLoss, LABELS, zero_at_equality=False, additive=False),
    "lightweight, adversarial": Variant(
        lambda: LightweightTeacherLoss(items=1, adversarial=True),
        LABELS,
        zero_at_equality=False,
        trainable="always",
        smooth=False,  # the discriminator's own loss sends the student no gradient
    ),
    "prime-aware": Variant(lambda: PrimeAwareLoss(PAIRS), HIDDEN, zero_at_equality=False, trainable="always"),
    "prime-aware, tokens": Variant(
        lambda: PrimeAwareLoss(PAIRS, pooling="tokens"), HIDDEN, zero_at_equality=False, trainable="always"
    ),
    "prime-aware, batch": Variant(
        lambda: PrimeAwareLoss(PAIRS, pooling="cls", normalization="batch"),
        HIDDEN,
        zero_at_equality=False,
        trainable="always",
        additive=False,
    ),
}
