"""Soft targets: the student learns the teacher's distribution over the classes (Hinton et al. 2015)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hfdistill import functional
from hfdistill.losses.base import choose
from hfdistill.losses.logits import SoftenedLogitLoss, Targets
from hfdistill.losses.method import Method, Paper
from hfdistill.schedules import Schedule

_DIVERGENCES = ("kl", "cross_entropy", "mse")


class SoftTargetLoss(SoftenedLogitLoss):
    """Match the teacher's softened class distribution.

    L = T^2 mean_rows KL(softmax(teacher / T) || softmax(student / T)); with a single output (regression), the mean
    squared difference of the two outputs. Token-level logits (B, N, K) are averaged over labelled tokens, or over real
    ones where there are no labels; rows and tokens labelled -100 do not count. A position of a causal model counts
    where the token after it is labelled.

    Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531,
    section 2; `divergence="mse"`: Ba and Caruana 2014, Do Deep Nets Really Need to be Deep?, equation 1.

    Shapes: logits (B, K) or (B, N, K), the same on both sides.

    Args:
        temperature: T > 0, or a Schedule; the paper tried 1 to 20.
        divergence: "kl"; "cross_entropy" (same gradient, not zero at equality); "mse" of the logits divided by T.
        reduction: "mean" over rows; "elementmean" divides by the number of classes too, as the reference codes of PKD
            and TinyBERT do.
        scale_by_temperature: multiply by T^2, which keeps gradients comparable across temperatures; "mse" never is.
        weight: see DistillationLoss.

    Raises:
        ValueError: T <= 0, an unknown divergence or reduction, different numbers of classes or shapes.
        TypeError: `temperature` is neither a number nor a Schedule.
    """

    method = Method(
        papers=(
            Paper(
                "Hinton, Vinyals and Dean",
                2015,
                "Distilling the Knowledge in a Neural Network",
                "https://arxiv.org/abs/1503.02531",
            ),
            Paper("Ba and Caruana", 2014, "Do Deep Nets Really Need to be Deep?", "https://arxiv.org/abs/1312.6184"),
        ),
        evidence=(
            "hand/kd_kl_T1",
            "kd_kl/T1.0",
            "kd_kl/T2.0",
            "kd_kl/T4.0",
            "kd_kl/tokens_masked",
            "soft_ce/T3",
            "soft_ce_elementmean/tinybert",
            "logit_mse",
            "forward_kl/tok",
            "forward_ce/tok",
            "deit/soft",
            "by hand in tests/losses/test_soft_target.py",
        ),
        restrictions=(
            "the same number of classes on both sides, in the same order (FrozenTeacher(label_map=[...]) reorders and "
            "chooses)",
            "with one output it is the squared difference, whatever `divergence` says",
            "rows of several labels need `divergence='mse'`: in a softmax classes exclude each other",
            "one vocabulary for language models",
        ),
    )
    fewest_classes: ClassVar[int] = 1

    def __init__(
        self,
        temperature: float | Schedule = 4.0,
        divergence: str = "kl",
        reduction: str = "mean",
        scale_by_temperature: bool = True,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(temperature, weight)
        self.divergence = choose("divergence", divergence, _DIVERGENCES)
        self.reduction = choose("reduction", reduction, ("mean", "elementmean"))
        self.scale_by_temperature = scale_by_temperature

    @property
    def exclusive(self) -> bool:
        """Squares of logits compare each class by itself."""
        return self.divergence != "mse"

    def compare(self, student: Tensor, teacher: Tensor, targets: Targets) -> Tensor:
        """The divergence of the student's logits from the teacher's."""
        temperature = self.temperature(targets.progress)
        if student.shape[-1] == 1 or self.divergence == "mse":
            return functional.logit_mse(student, teacher, 1.0 if student.shape[-1] == 1 else temperature, targets.mask)
        divergence = functional.soft_target_kl if self.divergence == "kl" else functional.soft_target_cross_entropy
        return divergence(student, teacher, temperature, targets.mask, self.reduction, self.scale_by_temperature)
