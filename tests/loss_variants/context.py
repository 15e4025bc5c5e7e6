"""Contextual relations: between tokens, and between the layers of a token."""

from loss_variant import HIDDEN, PAIRS, Variant

from hfdistill.losses.relation.context import LayerRelationLoss, TokenRelationLoss
from hfdistill.representations import Needs

# Two layers have no relations that could differ, so that PAIRS would leave nothing to learn; that a student learns
# nothing from itself is tested in tests/losses/test_context.py.
THREE = ((0, 0), *PAIRS)
SEEN = (Needs(hidden_states=frozenset({0, 1, 2})), Needs(hidden_states=frozenset({0, 2, 4})))

VARIANTS = {
    "token relation, distance": Variant(lambda: TokenRelationLoss(PAIRS), HIDDEN),
    "token relation, cosine": Variant(lambda: TokenRelationLoss(PAIRS, "cosine"), HIDDEN),
    "token relation, angle": Variant(lambda: TokenRelationLoss(PAIRS, "angle"), HIDDEN),
    "token relation, angle of neighbours": Variant(lambda: TokenRelationLoss(PAIRS, "angle", window=3), HIDDEN),
    "layer relation, distance": Variant(lambda: LayerRelationLoss(THREE), SEEN, zero_at_equality=False),
    "layer relation, cosine": Variant(lambda: LayerRelationLoss(THREE, "cosine"), SEEN, zero_at_equality=False),
    "layer relation, angle": Variant(lambda: LayerRelationLoss(THREE, "angle"), SEEN, zero_at_equality=False),
}
