"""Attended layers and channels, assigned channels, features of auxiliary classifiers."""

from loss_variant import HIDDEN, PAIRS, Variant

from hfdistill.losses.feature.attended_layer import AttendedLayerLoss
from hfdistill.losses.feature.attentive_channel import AttentiveChannelLoss
from hfdistill.losses.feature.channel_matching import ChannelMatchingLoss
from hfdistill.losses.feature.task_oriented import TaskOrientedLoss

VARIANTS = {
    "attended layer": Variant(
        lambda: AttendedLayerLoss(PAIRS, width=5), HIDDEN, zero_at_equality=False, trainable="always"
    ),
    "attended layer, over the batch": Variant(
        lambda: AttendedLayerLoss(PAIRS, width=5, norm="batch"),
        HIDDEN,
        zero_at_equality=False,
        trainable="always",
        additive=False,  # queries and keys are normalised over the rows of the micro-batch
    ),
    "attentive channel": Variant(lambda: AttentiveChannelLoss(PAIRS), HIDDEN, trainable="always"),
    "channel matching": Variant(
        lambda: ChannelMatchingLoss(PAIRS),
        HIDDEN,
        additive=False,  # the first batch makes the first assignment
    ),
    "channel matching, sparse": Variant(lambda: ChannelMatchingLoss(PAIRS, "sparse"), HIDDEN, additive=False),
    "channel matching, largest": Variant(lambda: ChannelMatchingLoss(PAIRS, "max"), HIDDEN, additive=False),
    "task-oriented": Variant(
        lambda: TaskOrientedLoss(PAIRS),
        HIDDEN,
        zero_at_equality=False,
        trainable="always",
        additive=False,  # its norms are not squared
    ),
}
