"""Losses over a large vocabulary, in chunks of tokens."""

from loss_variant import HEADS, Variant
from toy_representations import WORDS

from hfdistill.losses.response.vocabulary import VocabularyDivergenceLoss, VocabularyTaskLoss
from hfdistill.representations import Needs

VARIANTS = {
    "vocabulary, forward": Variant(lambda: VocabularyDivergenceLoss(chunk=2), HEADS, head=WORDS, classes=7),
    "vocabulary, reverse": Variant(lambda: VocabularyDivergenceLoss("reverse_kl", chunk=3), HEADS, head=WORDS),
    "vocabulary, jsd": Variant(
        lambda: VocabularyDivergenceLoss("jsd", 0.1, temperature=2.0, scale_by_temperature=True), HEADS, head=WORDS
    ),
    "vocabulary, skewed": Variant(lambda: VocabularyDivergenceLoss("skewed_kl", chunk=1), HEADS, head=WORDS),
    "vocabulary, labels": Variant(
        lambda: VocabularyTaskLoss(0.1, chunk=2),
        (Needs(output_head=True), Needs()),
        zero_at_equality=False,
        head=WORDS,
        classes=7,
    ),
}
