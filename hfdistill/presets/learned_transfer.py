"""Preset of learned transfer."""

from __future__ import annotations

from hfdistill.losses import TaskLoss
from hfdistill.losses.feature.learned_transfer import LearnedTransferLoss
from hfdistill.objective import Objective


def l2t_ww(beta: float = 0.5, candidates: int = 4, virtual_steps: int = 2) -> Objective:
    """L2T-ww: task + 0.5 sum over pairs of layers of lambda sum_d w_d (r(h_s) - h_t)_d^2, w and lambda meta-learned.

    Jang et al. 2019, Learning What and Where to Transfer, https://arxiv.org/abs/1905.05901. beta, 4 x 4 pairs and 2
    virtual steps are the authors'. A training step takes about six times as long; virtual_steps=0 keeps the weights
    uniform and costs nothing more. The paper's meta networks have an optimizer of their own (Adam, 1e-4); here they
    share the Trainer's.

    Args:
        beta: weight of the match.
        candidates: layers of either side, all with all.
        virtual_steps: steps of the virtual student whose outcome teaches the meta networks.
    """
    return Objective(task=TaskLoss(), match=LearnedTransferLoss("uniform", candidates, virtual_steps, weight=beta))
