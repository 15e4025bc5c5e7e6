"""Presets of class knowledge: how long, in which parts and in which form a student learns the teacher's classes."""

from __future__ import annotations

from hfdistill.losses import SoftTargetLoss, TaskLoss
from hfdistill.losses.response.correlation import CorrelationLoss
from hfdistill.losses.response.decoupled import DecoupledLoss
from hfdistill.losses.response.standardized import StandardizedLoss
from hfdistill.objective import Objective
from hfdistill.presets.shares import check_share
from hfdistill.schedules import Constant, Linear, Piecewise


def logit_regression() -> Objective:
    """Logit regression: the mean over rows and classes of (student logit - teacher logit)^2, and no labels.

    Ba and Caruana 2014, Do Deep Nets Really Need to be Deep?, https://arxiv.org/abs/1312.6184, equation 1, averaged
    over the classes where the paper has half their sum. Unlike soft targets it sees a constant added to a row.
    """
    return Objective(kd=SoftTargetLoss(1.0, divergence="mse"))


def eskd(temperature: float = 4.0, alpha: float = 0.9, switch: float = 0.5) -> Objective:
    """Early-stopped KD: (1 - alpha) task + alpha T^2 KL first, then the task alone, without the teacher.

    Cho and Hariharan 2019, On the Efficacy of Knowledge Distillation, https://arxiv.org/abs/1910.01348: distillation
    hurts a small student late in training. The switch at half of the run, T and alpha are ours, the paper's are not
    verified. Its other half, a teacher whose own training was stopped early, is a choice of checkpoint: pass an
    earlier one as the teacher.

    Args:
        temperature: T > 0.
        alpha: share of the soft targets up to the switch, 0 to 1.
        switch: share of the run after which the labels are learnt alone, in (0, 1).

    Raises:
        ValueError: `alpha` is no share; a switch beyond the run.
    """
    check_share(alpha)
    return Objective(
        task=TaskLoss(weight=Piecewise({0.0: 1.0 - alpha, switch: 1.0})),
        kd=SoftTargetLoss(temperature, weight=Piecewise({0.0: alpha, switch: 0.0})),
    )


def dkd(temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0, warmup: float = 1 / 12) -> Objective:
    """DKD: task + T^2 (alpha TCKD + beta NCKD), the label and the other classes apart, after a linear warm-up.

    Zhao et al. 2022, Decoupled Knowledge Distillation, https://arxiv.org/abs/2203.08679. The defaults are those of the
    authors' code for CIFAR, whose warm-up takes 20 epochs (of 240, from memory, not verified); for ImageNet T = 1 and
    beta = 0.5, warm-up 1 epoch. beta was tuned between 1 and 10 for each pair of models. Needs at least 3 classes.

    Args:
        temperature: T > 0.
        alpha: weight of the label's part.
        beta: weight of the other classes' part.
        warmup: share of the run in which the decoupled loss grows from 0 to its weight, in [0, 1]; 0: no warm-up.

    Raises:
        ValueError: a warm-up beyond the run.
    """
    weight = Linear(0.0, 1.0, finish=warmup) if warmup else Constant(1.0)
    return Objective(task=TaskLoss(), kd=DecoupledLoss(alpha, beta, temperature, weight=weight))


def dist(temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0, gather: bool = False) -> Objective:
    """DIST: task + T^2 (beta inter + gamma intra), correlations of classes in a row and of rows in a class.

    Huang et al. 2022, Knowledge Distillation from A Stronger Teacher, https://arxiv.org/abs/2205.10536. The defaults
    are those of the authors' code; for CIFAR the paper has T = 4 and beta = gamma = 2 (from memory, not verified).
    Needs at least 3 classes, and batches of many rows for intra.

    Args:
        temperature: T > 0.
        beta: weight of the classes of a row.
        gamma: weight of the rows of a class.
        gather: correlate the rows of all processes.
    """
    return Objective(task=TaskLoss(), kd=CorrelationLoss(beta, gamma, temperature, gather))


def lskd(temperature: float = 2.0, soft: float = 9.0, hard: float = 0.1) -> Objective:
    """LSKD: 0.1 task + 9 T^2 KL of logits that are standardised row by row.

    Sun et al. 2024, Logit Standardization in Knowledge Distillation, https://arxiv.org/abs/2403.01427. Base
    temperature and weights are those that the authors' code is run with. Needs at least 3 classes.

    Args:
        temperature: the base T > 0.
        soft: weight of the soft targets.
        hard: weight of the labels.
    """
    return Objective(task=TaskLoss(weight=hard), kd=StandardizedLoss(temperature, weight=soft))
