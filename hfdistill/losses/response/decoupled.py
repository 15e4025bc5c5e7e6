"""Decoupled knowledge distillation: the label and the other classes apart (Zhao et al. 2022)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hfdistill.functional.classes import decoupled_kl
from hfdistill.losses.logits import SoftenedLogitLoss, Targets
from hfdistill.losses.method import Method, Paper
from hfdistill.schedules import Schedule


class DecoupledLoss(SoftenedLogitLoss):
    """Match the teacher's certainty of the label, and its ranking of the other classes, with a weight each.

    L = T^2 mean_rows (alpha TCKD + beta NCKD), with p = softmax(logits / T), y the label and q the softmax over the
    classes that are not y: TCKD = KL((p_t(y), 1 - p_t(y)) || (p_s(y), 1 - p_s(y))), NCKD = KL(q_t || q_s). In soft
    targets NCKD has the weight 1 - p_t(y), next to nothing where the teacher is sure. Rows and tokens labelled -100 do
    not count. With two classes NCKD is 0 and TCKD is SoftTargetLoss itself, so two classes are refused.

    Zhao et al. 2022, Decoupled Knowledge Distillation, https://arxiv.org/abs/2203.08679; read in the authors' code.
    There the label is shut out by subtracting 1000 from its logit, here exactly.

    Shapes: logits (B, K) or (B, N, K), the same on both sides; labels without K.

    Args:
        alpha: weight of TCKD.
        beta: weight of NCKD; the authors tuned 1 to 10 for each pair of models, 0.5 on ImageNet.
        temperature: T > 0, or a Schedule; 4 on CIFAR, 1 on ImageNet.
        weight: see DistillationLoss.

    Raises:
        ValueError: T <= 0, fewer than 3 classes, different numbers of classes or shapes, a batch without labels.
        TypeError: `temperature` is neither a number nor a Schedule.
    """

    method = Method(
        papers=(Paper("Zhao et al.", 2022, "Decoupled Knowledge Distillation", "https://arxiv.org/abs/2203.08679"),),
        evidence=("dkd/parts", "dkd/1_8_4"),
        restrictions=(
            "the same number of classes on both sides, in the same order",
            "at least 3 classes: with two there is one other class, and nothing to rank",
            "needs class labels",
        ),
    )
    fewest_classes: ClassVar[int] = 3
    labelled: ClassVar[bool] = True

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float | Schedule = 4.0,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(temperature, weight)
        self.alpha = alpha
        self.beta = beta

    def compare(self, student: Tensor, teacher: Tensor, targets: Targets) -> Tensor:
        """Both parts of the divergence from the teacher's logits."""
        if targets.labels is None:  # forward has refused this
            raise ValueError("DecoupledLoss reads the class labels, got none.")
        temperature = self.temperature(targets.progress)
        return decoupled_kl(student, teacher, targets.labels, temperature, self.alpha, self.beta, targets.mask)
