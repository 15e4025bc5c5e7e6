"""Presets that freeze a part of the student while another learns."""

from __future__ import annotations

from hfdistill.losses import TaskLoss
from hfdistill.losses.feature.stage_by_stage import StageByStageLoss
from hfdistill.objective import Objective
from hfdistill.schedules import Piecewise


def sskd(finish: float = 0.75, layers: str = "uniform", train_backbone: bool = False) -> Objective:
    """Stage by stage: hints for one stretch of layers after another, all others frozen, then the head on the labels.

    Gao et al. 2019, An Embarrassingly Simple Approach for Knowledge Distillation, https://arxiv.org/abs/1812.01819. No
    loss has a weight, as in the paper; equal stages and the share of the head are our choice. The paper restarts the
    learning rate at each stage: give one run a constant rate, or make a run of each stage.

    Args:
        finish: share of the run after which the head learns, in (0, 1).
        layers: name of the layer map; each of its pairs is a stage.
        train_backbone: let all layers learn with the head at last.
    """
    return Objective(
        task=TaskLoss(weight=Piecewise({0.0: 0.0, finish: 1.0})),
        stages=StageByStageLoss(layers, finish, train_backbone, weight=Piecewise({0.0: 1.0, finish: 0.0})),
    )
