"""Divergences of the two class distributions other than the forward KL: reverse, bounded, skewed."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from hfdistill.functional.divergences import (
    generalized_jsd,
    skewed_forward_cross_entropy,
    skewed_forward_kl,
    skewed_reverse_kl,
)
from hfdistill.functional.response import reverse_kl, total_variation
from hfdistill.losses.base import choose
from hfdistill.losses.logits import SoftenedLogitLoss, Targets
from hfdistill.losses.method import Method, Paper
from hfdistill.schedules import Schedule


class _Divergence(SoftenedLogitLoss):
    """A divergence of softened class distributions; subclass it and write `diverge`.

    Rows and tokens labelled -100 do not count, nor does padding where there are no labels; a position of a causal
    model counts where the token after it is labelled.

    Args:
        temperature: T > 0, or a Schedule.
        scale_by_temperature: multiply by T^2, which keeps gradients comparable across temperatures.
        weight: see DistillationLoss.

    Raises:
        ValueError: T <= 0.
        TypeError: `temperature` is neither a number nor a Schedule.
    """

    def __init__(
        self,
        temperature: float | Schedule = 1.0,
        scale_by_temperature: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(temperature, weight)
        self.scale_by_temperature = scale_by_temperature

    def compare(self, student: Tensor, teacher: Tensor, targets: Targets) -> Tensor:
        """The divergence, times T^2 if it is to be scaled."""
        temperature = self.temperature(targets.progress)
        value = self.diverge(student, teacher, temperature, targets.mask)
        return value * temperature**2 if self.scale_by_temperature else value

    @abstractmethod
    def diverge(self, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
        """The mean divergence over the rows of logits (B, K) or (B, N, K) where the mask is True."""


class ReverseKLLoss(_Divergence):
    """Reverse KL: the student gives up what the teacher finds unlikely, rather than cover all that it finds likely.

    L = mean_rows KL(softmax(student / T) || softmax(teacher / T)), without T^2. A teacher at -inf where the student is
    not makes it infinite, which is right: SkewedKLLoss(direction="reverse") stays finite.

    Gu, Dong, Wei and Huang 2023, MiniLLM: Knowledge Distillation of Large Language Models,
    https://arxiv.org/abs/2306.08543. Its divergence at each token; the paper's policy gradient over sampled answers is
    a way to train, not part of this loss.

    Shapes: logits (B, K) or (B, N, K), the same on both sides, K >= 2.

    Args:
        temperature: T > 0, or a Schedule.
        scale_by_temperature: multiply by T^2; the paper does not.
        weight: see DistillationLoss.

    Raises:
        ValueError: T <= 0, different numbers of classes or shapes, a single class.
        TypeError: `temperature` is neither a number nor a Schedule.
    """

    method = Method(
        papers=(
            Paper(
                "Gu et al.",
                2023,
                "MiniLLM: Knowledge Distillation of Large Language Models",
                "https://arxiv.org/abs/2306.08543",
            ),
        ),
        evidence=("hand/reverse_kl", "reverse_kl/tok"),
        restrictions=("same classes on both sides", "no teacher whose logits were cut to its top classes"),
    )

    def diverge(self, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
        """The reverse KL."""
        return reverse_kl(student, teacher, temperature, mask)


class TotalVariationLoss(_Divergence):
    """Total variation distance of the two class distributions: the probability that would have to be moved.

    L = mean_rows 1/2 sum_k |p_teacher - p_student|, p = softmax(logits / T), between 0 and 1, without T^2.

    Wen, Li, Du and Mou 2023, f-Divergence Minimization for Sequence-Level Knowledge Distillation,
    https://arxiv.org/abs/2307.15190. Its divergence at each token.

    Shapes: logits (B, K) or (B, N, K), the same on both sides, K >= 2.

    Args:
        temperature: T > 0, or a Schedule.
        scale_by_temperature: multiply by T^2; the paper does not.
        weight: see DistillationLoss.

    Raises:
        ValueError: T <= 0, different numbers of classes or shapes, a single class.
        TypeError: `temperature` is neither a number nor a Schedule.
    """

    method = Method(
        papers=(
            Paper(
                "Wen et al.",
                2023,
                "f-Divergence Minimization for Sequence-Level Knowledge Distillation",
                "https://arxiv.org/abs/2307.15190",
            ),
        ),
        evidence=("hand/tv", "total_variation"),
        restrictions=("same classes on both sides",),
    )

    def diverge(self, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
        """The total variation distance."""
        return total_variation(student, teacher, temperature, mask)


class JensenShannonLoss(_Divergence):
    """Generalised Jensen-Shannon divergence: each side against the mixture of both, so that nothing is infinite.

    L = mean_rows beta KL(p_t || M) + (1 - beta) KL(p_s || M), M = beta p_t + (1 - beta) p_s, p = softmax(logits / T),
    without T^2. beta = 0 is the forward and beta = 1 the reverse KL; close to them the value goes to 0 with beta or
    1 - beta, so the scale jumps at both ends, and a beta of 0.1 wants a larger weight than one of 0.5.

    Agarwal et al. 2024, On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes,
    https://arxiv.org/abs/2306.13649. The paper's share of answers sampled from the student is a choice of data, not
    part of this loss.

    Shapes: logits (B, K) or (B, N, K), the same on both sides, K >= 2.

    Args:
        beta: share of the teacher in the mixture, 0 to 1.
        temperature: T > 0, or a Schedule.
        scale_by_temperature: multiply by T^2; the paper does not.
        weight: see DistillationLoss.

    Raises:
        ValueError: beta outside 0 to 1, T <= 0, different numbers of classes or shapes, a single class.
        TypeError: `temperature` is neither a number nor a Schedule.
    """

    method = Method(
        papers=(
            Paper(
                "Agarwal et al.",
                2024,
                "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
                "https://arxiv.org/abs/2306.13649",
            ),
        ),
        evidence=(
            "generalized_jsd/beta0.0",
            "generalized_jsd/beta0.1",
            "generalized_jsd/beta0.5",
            "generalized_jsd/beta0.9",
            "generalized_jsd/beta1.0",
            "generalized_jsd/beta0.5_T2",
        ),
        restrictions=("same classes on both sides",),
    )

    def __init__(
        self,
        beta: float = 0.5,
        temperature: float | Schedule = 1.0,
        scale_by_temperature: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(temperature, scale_by_temperature, weight)
        self.beta = _share("beta", beta)

    def diverge(self, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
        """The generalised Jensen-Shannon divergence."""
        return generalized_jsd(student, teacher, self.beta, temperature, mask)


class SkewedKLLoss(_Divergence):
    """Skewed KL: a KL whose second side holds a share of the first, which bounds it by -log(alpha).

    L = mean_rows KL(p_t || alpha p_t + (1 - alpha) p_s), p = softmax(logits / T), without T^2; reverse:
    mean_rows KL(p_s || alpha p_s + (1 - alpha) p_t). alpha = 0 is the plain KL of this direction.

    Ko, Kim, Chen and Yun 2024, DistiLLM: Towards Streamlined Distillation for Large Language Models,
    https://arxiv.org/abs/2402.03898. The code's forward direction is the cross-entropy.

    Shapes: logits (B, K) or (B, N, K), the same on both sides, K >= 2.

    Args:
        direction: "forward", from the teacher, or "reverse", from the student.
        alpha: share of the first side in the mixture, from 0 to below 1; the paper takes 0.1.
        form: "kl"; "cross_entropy" adds the teacher's entropy (same gradient, not zero at equality), forward only.
        temperature: T > 0, or a Schedule.
        scale_by_temperature: multiply by T^2; the paper does not.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown direction or form, the cross-entropy in reverse, alpha outside [0, 1), T <= 0, different
            numbers of classes or shapes, a single class.
        TypeError: `temperature` is neither a number nor a Schedule.
    """

    method = Method(
        papers=(
            Paper(
                "Ko et al.",
                2024,
                "DistiLLM: Towards Streamlined Distillation for Large Language Models",
                "https://arxiv.org/abs/2402.03898",
            ),
        ),
        evidence=("skew_forward_kl/0.1", "skew_forward_ce/0.1", "skew_reverse_kl/0.1"),
        restrictions=("same classes on both sides",),
    )

    def __init__(
        self,
        direction: str = "forward",
        alpha: float = 0.1,
        form: str = "kl",
        temperature: float | Schedule = 1.0,
        scale_by_temperature: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(temperature, scale_by_temperature, weight)
        self.direction = choose("direction", direction, ("forward", "reverse"))
        self.form = choose("form", form, ("kl", "cross_entropy"))
        if direction == "reverse" and form == "cross_entropy":
            raise ValueError(
                "form='cross_entropy' is for direction='forward', got direction='reverse': what it leaves out is the "
                "entropy of the first side, which in reverse is the student's and so has a gradient. Use form='kl'."
            )
        self.alpha = _share("alpha", alpha)
        if alpha == 1:
            raise ValueError("alpha must be below 1, got 1: the loss is then 0 whatever the student answers. Use 0.1.")

    def diverge(self, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
        """The skewed divergence."""
        if self.direction == "reverse":
            return skewed_reverse_kl(student, teacher, self.alpha, temperature, mask)
        forward = skewed_forward_kl if self.form == "kl" else skewed_forward_cross_entropy
        return forward(student, teacher, self.alpha, temperature, mask)


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(
            f"{name} must be from 0 to 1, got {value}: it is the share of one side in a mixture of both, and outside "
            "there is no mixture. 0.1 and 0.5 are usual."
        )
    return value
