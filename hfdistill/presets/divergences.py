"""Presets of methods made for causal language models, which work for any head: MiniLLM, GKD, DistiLLM, ULD, top k.

All of them learn at each token of given texts. What their papers add, answers that the student samples while it
trains, is a choice of data and not here.
"""

from __future__ import annotations

from hfdistill.losses.response.cross_vocabulary import UniversalLogitLoss
from hfdistill.losses.response.divergence import JensenShannonLoss, ReverseKLLoss, SkewedKLLoss
from hfdistill.losses.response.top_classes import TopKLoss
from hfdistill.losses.task import TaskLoss
from hfdistill.objective import Objective
from hfdistill.presets.shares import check_share


def reverse_kl(temperature: float = 1.0, alpha: float = 1.0) -> Objective:
    """MiniLLM's divergence at each token: (1 - alpha) task + alpha KL(student || teacher), by default no labels.

    Gu et al. 2023, MiniLLM, https://arxiv.org/abs/2306.08543. Its policy gradient over sampled answers is not here,
    nor the language modelling on pretraining text that it adds.

    Args:
        temperature: T > 0; not squared into the loss.
        alpha: share of the divergence, 0 to 1.

    Raises:
        ValueError: `alpha` is no share.
    """
    check_share(alpha)
    return Objective(task=TaskLoss(weight=1.0 - alpha), kd=ReverseKLLoss(temperature, weight=alpha))


def gkd(beta: float = 0.5, temperature: float = 1.0, alpha: float = 1.0) -> Objective:
    """GKD: (1 - alpha) task + alpha generalised Jensen-Shannon divergence, by default no labels.

    Agarwal et al. 2024, On-Policy Distillation of Language Models, https://arxiv.org/abs/2306.13649. beta = 0.5 is
    TRL's default; the paper tries several. Its share of texts sampled from the student is not here.

    Args:
        beta: share of the teacher in the mixture: 0 is the forward KL, 1 the reverse KL.
        temperature: T > 0; not squared into the loss.
        alpha: share of the divergence, 0 to 1.

    Raises:
        ValueError: `alpha` or `beta` is no share.
    """
    check_share(alpha)
    return Objective(task=TaskLoss(weight=1.0 - alpha), kd=JensenShannonLoss(beta, temperature, weight=alpha))


def distillm(direction: str = "forward", skew: float = 0.1, temperature: float = 1.0, alpha: float = 1.0) -> Objective:
    """DistiLLM: (1 - alpha) task + alpha skewed KL, or skewed reverse KL, by default no labels.

    Ko et al. 2024, DistiLLM, https://arxiv.org/abs/2402.03898. The defaults are those of the authors' scripts, which
    take the forward direction. Their adaptive use of texts sampled from the student is not here.

    Args:
        direction: "forward" (SKL) or "reverse" (SRKL).
        skew: the paper's alpha, share of the first side in the mixture, from 0 to below 1.
        temperature: T > 0; not squared into the loss.
        alpha: share of the divergence, 0 to 1.

    Raises:
        ValueError: `alpha` or `skew` is no share, another direction.
    """
    check_share(alpha)
    skewed = SkewedKLLoss(direction, skew, temperature=temperature, weight=alpha)
    return Objective(task=TaskLoss(weight=1.0 - alpha), kd=skewed)


def uld(temperature: float = 1.0, soft: float = 1.5, hard: float = 1.0, top: int | None = None) -> Objective:
    """ULD: task + 1.5 distance of the sorted probabilities, for a teacher with another vocabulary or tokenizer.

    Boizard et al. 2024, Universal Logit Distillation, https://arxiv.org/abs/2402.12030. Weights and T are those of the
    authors' code. The labels say which token is meant, which sorting forgets: do not leave them out.

    Args:
        temperature: T > 0 of both sides; not squared into the loss.
        soft: weight of the sorted probabilities.
        hard: weight of the labels.
        top: sort only so many probabilities, and take the rest as one more; None sorts all.
    """
    return Objective(task=TaskLoss(weight=hard), kd=UniversalLogitLoss(temperature, top, weight=soft))


def top_k(k: int = 128, missing: str = "zero", temperature: float = 1.0, alpha: float = 0.5) -> Objective:
    """DistillKit's KL over the teacher's k most likely classes: 0.5 task + 0.5 T^2 KL.

    Arcee AI 2024, DistillKit, https://github.com/arcee-ai/DistillKit, whose default weights, T and `missing` these
    are; k = 128 is ours. For a teacher whose logits were cut to their top k to be stored.

    Args:
        k: number of classes of each row that the teacher tells about; all of them where there are fewer.
        missing: what the other classes get: "zero" takes them for impossible, "tail" takes them as one class.
        temperature: T > 0; squared into the loss, as in DistillKit.
        alpha: share of the KL, 0 to 1.

    Raises:
        ValueError: `alpha` is no share, k < 1, another word for `missing`.
    """
    check_share(alpha)
    kd = TopKLoss(k, missing, temperature, scale_by_temperature=True, weight=alpha)
    return Objective(task=TaskLoss(weight=1.0 - alpha), kd=kd)
