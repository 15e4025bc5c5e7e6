"""The catalogue of losses: one class per method, one file per paper or family.

The folders are the kinds of knowledge of the surveys: response (what a model answers), feature (what it computes on
the way), relation (how tokens, heads and samples relate). `CATALOGUE` maps each name that a configuration may use to
its class; Python names are the registry.
"""

from __future__ import annotations

from hfdistill.losses.base import DistillationLoss
from hfdistill.losses.feature.attention_map import AttentionMapLoss
from hfdistill.losses.feature.hidden_state import HiddenStateLoss
from hfdistill.losses.feature.patience import PatienceLoss
from hfdistill.losses.layerwise import AttentionLoss, LayerwiseLoss
from hfdistill.losses.relation.attention_relation import AttentionRelationLoss
from hfdistill.losses.relation.contrastive_representation import ContrastiveRepresentationLoss
from hfdistill.losses.response.soft_target import SoftTargetLoss
from hfdistill.losses.task import TaskLoss

CATALOGUE: dict[str, type[DistillationLoss]] = {
    loss.__name__: loss
    for loss in (
        TaskLoss,
        SoftTargetLoss,
        HiddenStateLoss,
        PatienceLoss,
        AttentionMapLoss,
        AttentionRelationLoss,
        ContrastiveRepresentationLoss,
    )
}
"""Class name -> class, for configurations and for the generated documentation."""

__all__ = [
    "CATALOGUE",
    "AttentionLoss",
    "AttentionMapLoss",
    "AttentionRelationLoss",
    "ContrastiveRepresentationLoss",
    "DistillationLoss",
    "HiddenStateLoss",
    "LayerwiseLoss",
    "PatienceLoss",
    "SoftTargetLoss",
    "TaskLoss",
]
