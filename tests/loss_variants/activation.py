"""Activation attention, flow, neuron selectivity, token gram, channels, knowledge projection, token pairs, critic."""

from loss_variant import HIDDEN, LAST, LOGITS, PAIRS, Variant
from toy_representations import TOKENS

from hfdistill.losses.feature.activation_attention import ActivationAttentionLoss
from hfdistill.losses.feature.channel import ChannelLoss
from hfdistill.losses.feature.flow import FlowLoss
from hfdistill.losses.feature.knowledge_projection import KnowledgeProjectionLoss
from hfdistill.losses.feature.neuron_selectivity import NeuronSelectivityLoss
from hfdistill.losses.feature.token_gram import TokenGramLoss
from hfdistill.losses.relation.holistic import HolisticLoss
from hfdistill.losses.relation.token_pairs import TokenPairLoss
from hfdistill.representations import Needs

VARIANTS = {
    "activation attention, code": Variant(lambda: ActivationAttentionLoss(PAIRS), HIDDEN),
    "activation attention, paper": Variant(lambda: ActivationAttentionLoss(PAIRS, variant="paper"), HIDDEN),
    "activation attention, power 1": Variant(lambda: ActivationAttentionLoss(PAIRS, power=1.0), HIDDEN),
    "flow": Variant(lambda: FlowLoss(PAIRS), HIDDEN, trainable="widths"),
    "neuron selectivity, polynomial": Variant(lambda: NeuronSelectivityLoss(PAIRS), HIDDEN),
    "neuron selectivity, linear": Variant(lambda: NeuronSelectivityLoss(PAIRS, "linear"), HIDDEN),
    "neuron selectivity, gaussian": Variant(lambda: NeuronSelectivityLoss(PAIRS, "gaussian", 0.5), HIDDEN),
    "neuron selectivity, gaussian of measured variance": Variant(
        lambda: NeuronSelectivityLoss(PAIRS, "gaussian"),
        HIDDEN,
        smooth=False,  # the variance is held constant
    ),
    "token gram": Variant(lambda: TokenGramLoss(PAIRS), HIDDEN),
    "channel, hidden": Variant(lambda: ChannelLoss(PAIRS), HIDDEN, trainable="widths"),
    "channel, logits": Variant(lambda: ChannelLoss(knowledge="logits"), LOGITS, head=TOKENS),
    "knowledge projection": Variant(
        lambda: KnowledgeProjectionLoss([1, 2], [2, 4]), HIDDEN, zero_at_equality=False, trainable="always"
    ),
    "token pairs": Variant(TokenPairLoss, LAST),
    "holistic": Variant(
        lambda: HolisticLoss(width=8),
        (Needs(logits=True), Needs(logits=True, hidden_states=frozenset({0}))),
        zero_at_equality=False,  # it is, but it needs layer 0
        trainable="always",
        smooth=False,  # its gradient is that of a game
    ),
}
