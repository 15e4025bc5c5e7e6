"""Presets of shaped supervision: other targets, other temperatures, other weights, other samples."""

from __future__ import annotations

from hfdistill.losses.feature.adaptive import PrimeAwareLoss
from hfdistill.losses.response.conditional import ConditionalTeacherLoss
from hfdistill.losses.response.knowledge_adjustment import AdjustedTargetLoss
from hfdistill.losses.response.lightweight_teacher import LightweightTeacherLoss
from hfdistill.losses.response.soft_target import SoftTargetLoss
from hfdistill.losses.response.triplet import TripletLoss
from hfdistill.losses.task import TaskLoss
from hfdistill.objective import Objective
from hfdistill.presets.shares import check_share
from hfdistill.schedules import Piecewise


def conditional_ts(temperature: float = 1.0) -> Objective:
    """Conditional teacher-student: CE with the teacher's distribution where it is right, with the label where not.

    Meng et al. 2019, Conditional Teacher-Student Learning, https://arxiv.org/abs/1904.12399: an exclusive choice for
    each row (or token), without a weight between the two. Written from the abstract.

    Args:
        temperature: T > 0 of the rows that learn from the teacher.
    """
    return Objective(conditional=ConditionalTeacherLoss(temperature))


def ka(temperature: float = 4.0, adjustment: str = "shift", epsilon: float = 0.1) -> Objective:
    """Knowledge adjustment: T^2 KL to the teacher with its mistakes put right, and no labels besides.

    Wen et al. 2021, Preparing Lessons: Improve Knowledge Distillation with Better Supervision,
    https://arxiv.org/abs/1911.07471, section 3.1. T is ours (the paper's is not verified; KD_Lib takes 20).

    Args:
        temperature: T > 0.
        adjustment: "shift" swaps the probabilities of the teacher's answer and the label, "smoothing" smooths the
            label.
        epsilon: share of the other classes in "smoothing".
    """
    return Objective(kd=AdjustedTargetLoss(temperature, adjustment, epsilon))


def dtd(
    temperature: float = 4.0,
    dynamic: str = "flsw",
    beta: float = 1.0,
    gamma: float = 1.0,
    adjustment: str = "shift",
) -> Objective:
    """Dynamic temperature distillation with knowledge adjustment: T_i^2 KL, with lower T_i for confusing rows.

    Wen et al. 2021, Preparing Lessons: Improve Knowledge Distillation with Better Supervision,
    https://arxiv.org/abs/1911.07471, section 3.2. T, beta and gamma are those of TextBrewer's example; the paper's
    (T 10 and beta 40 on CIFAR-100) are not verified.

    Args:
        temperature: T > 0, the mean of the rows' own.
        dynamic: "flsw" (how far the two models' logits agree) or "cwsm" (how sure the student is).
        beta: how far T_i strays from T.
        gamma: exponent of "flsw".
        adjustment: "shift", "smoothing", or "none": then the labels are not learnt at all.
    """
    return Objective(kd=AdjustedTargetLoss(temperature, adjustment, dynamic=dynamic, beta=beta, gamma=gamma))


def pad(switch: float = 0.5, feature: float = 1.0, pooling: str = "mean", normalization: str = "batch") -> Objective:
    """PAD: task + mean squared difference of the last pooled states, from the switch on weighed by their variance.

    Zhang et al. 2020, Prime-Aware Adaptive Distillation,
    https://www.ecva.net/papers/eccv_2020/papers_ECCV/html/3317_ECCV_2020_paper.php. Weights, the switch at half of the
    run and batch normalisation of the variance are those of torchdistill's configuration.

    Args:
        switch: share of the run with the plain squared difference, in (0, 1).
        feature: weight of the features.
        pooling: "mean", "cls", "last", or "tokens".
        normalization: "batch", or "layer", which does not depend on which rows share a batch.
    """
    variance = Piecewise({0.0: 0.0, switch: 1.0})
    return Objective(
        task=TaskLoss(),
        feature=PrimeAwareLoss(pooling=pooling, normalization=normalization, variance=variance, weight=feature),
    )


def lw_kd(temperature: float = 4.0, alpha: float = 0.9, adversarial: bool = False) -> Objective:
    """LW-KD: (1 - alpha) task + alpha T^2 KL to a tiny network that knows synthetic data of as many classes.

    Liu et al. 2020, Learning from a Lightweight Teacher for Efficient Knowledge Distillation,
    https://arxiv.org/abs/2005.09163. It needs no teacher model. Only the abstract was read: T, alpha, the form of the
    loss and the synthetic data are ours.

    Args:
        temperature: T > 0.
        alpha: share of the soft targets, 0 to 1.
        adversarial: train a discriminator between the student's and the tiny network's answers too.

    Raises:
        ValueError: `alpha` is no share.
    """
    check_share(alpha)
    return Objective(
        task=TaskLoss(weight=1.0 - alpha),
        kd=LightweightTeacherLoss(temperature, adversarial=adversarial, weight=alpha),
    )


def triplet(margin: float = 5.0, soft: float = 1.0, hard: float = 1.0, triplets: float = 2.0) -> Objective:
    """Triplet-loss KD: KL at T = 1 + task + 2 max(0, |t(x) - s(x)| - |t(x) - s(x')| + 5), x' of another class.

    Oki et al. 2020, Triplet Loss for Knowledge Distillation, https://arxiv.org/abs/2004.08116; margin and weights are
    those of the authors' code. There x' comes from the whole training set, here from the batch.

    Args:
        margin: > 0, in units of the logits.
        soft: weight of the soft targets.
        hard: weight of the labels.
        triplets: weight of the triplets.
    """
    return Objective(
        task=TaskLoss(weight=hard),
        kd=SoftTargetLoss(1.0, weight=soft),
        triplet=TripletLoss(margin, weight=triplets),
    )


def unix(temperature: float = 4.0) -> Objective:
    """UNIX: T^2 KL alone, to be run on uncertainty-aware mixup of each batch, which is an option of the trainer.

    Xu et al. 2020, Computation-Efficient Knowledge Distillation via Uncertainty-Aware Mixup,
    https://arxiv.org/abs/2012.09413; as in the authors' code the labels have no weight. The method is in the rows:
    both models see three quarters of them, those that the student is least sure of (see hfdistill.mixup).

    Args:
        temperature: T > 0.
    """
    return Objective(kd=SoftTargetLoss(temperature))
