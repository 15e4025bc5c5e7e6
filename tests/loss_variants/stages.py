"""Stage by stage: one stage, since the projectors of the others rest."""

from loss_variant import LAST, Variant

from hfdistill.losses.feature.stage_by_stage import StageByStageLoss

VARIANTS = {"stage by stage": Variant(lambda: StageByStageLoss(((2, 4),)), LAST, trainable="widths")}
