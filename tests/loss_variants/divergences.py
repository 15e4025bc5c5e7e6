"""Reverse, bounded and skewed divergences, the teacher's top classes, another vocabulary."""

from loss_variant import LOGITS, Variant
from toy_representations import TOKENS

from hfdistill.losses.response.cross_vocabulary import UniversalLogitLoss
from hfdistill.losses.response.divergence import JensenShannonLoss, ReverseKLLoss, SkewedKLLoss, TotalVariationLoss
from hfdistill.losses.response.top_classes import TopKLoss

VARIANTS = {
    "reverse kl": Variant(ReverseKLLoss, LOGITS),
    "reverse kl, tokens": Variant(lambda: ReverseKLLoss(2.0, scale_by_temperature=True), LOGITS, head=TOKENS),
    "total variation": Variant(TotalVariationLoss, LOGITS),
    "total variation, tokens": Variant(TotalVariationLoss, LOGITS, head=TOKENS),
    "jensen-shannon": Variant(JensenShannonLoss, LOGITS),
    "jensen-shannon, tokens": Variant(lambda: JensenShannonLoss(0.1, 2.0), LOGITS, head=TOKENS),
    "jensen-shannon, forward end": Variant(lambda: JensenShannonLoss(0.0), LOGITS),
    "jensen-shannon, reverse end": Variant(lambda: JensenShannonLoss(1.0), LOGITS),
    "skewed kl": Variant(SkewedKLLoss, LOGITS),
    "skewed kl, reverse, tokens": Variant(lambda: SkewedKLLoss("reverse"), LOGITS, head=TOKENS),
    "skewed kl, cross-entropy": Variant(lambda: SkewedKLLoss(form="cross_entropy"), LOGITS, zero_at_equality=False),
    "top k, tail": Variant(lambda: TopKLoss(2), LOGITS, classes=5),
    "top k, tail, tokens": Variant(lambda: TopKLoss(2), LOGITS, head=TOKENS, classes=5),
    "top k, zero": Variant(lambda: TopKLoss(2, "zero"), LOGITS, zero_at_equality=False, classes=5),
    "top k, all": Variant(TopKLoss, LOGITS),
    "universal logits": Variant(UniversalLogitLoss, LOGITS),
    "universal logits, tokens": Variant(UniversalLogitLoss, LOGITS, head=TOKENS, classes=5),
    "universal logits, top": Variant(lambda: UniversalLogitLoss(2.0, top=2), LOGITS, head=TOKENS, classes=5),
}
