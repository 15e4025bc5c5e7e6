"""Better supervision: the teacher's mistakes put right, and a temperature for each row (Wen et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from hfdistill.functional.response import soft_target_kl
from hfdistill.functional.supervision import (
    cwsm_temperature,
    flsw_temperature,
    label_smoothing,
    probability_shift,
)
from hfdistill.losses.base import choose
from hfdistill.losses.logits import SoftenedLogitLoss, Targets
from hfdistill.losses.method import Method, Paper
from hfdistill.schedules import Schedule


class AdjustedTargetLoss(SoftenedLogitLoss):
    """Soft targets in which the teacher's mistakes are put right, at a temperature of each row's own.

    L = mean_rows T_i^2 KL(q_i || softmax(student_i / T_i)), q_i = softmax(teacher_i / T_i) where the teacher is right.
    Where it is wrong, adjustment="shift" swaps the probabilities of its answer and of the label; "smoothing" gives the
    label 1 - epsilon and the rest to the other classes in equal parts; "none" leaves it. The targets hold the labels
    already: with an adjustment no task loss is needed beside it.

    T_i = T, or with `dynamic` T + beta (mean_j w_j - w_i), clamped below: rows of large w get harder targets.
    dynamic="flsw": w = (1 - cos(student, teacher))^gamma, of the logits; "cwsm": w = 1 / max_k softmax(student)_k.
    w has no gradient.

    Wen, Lai and Qian 2021, Preparing Lessons: Improve Knowledge Distillation with Better Supervision,
    https://arxiv.org/abs/1911.07471, section 3. Held to TextBrewer's code; there T_i is neither clamped nor squared
    into the loss. The paper's beta and T are not verified.

    Shapes: logits (B, K) or (B, N, K), the same on both sides; labels without K.

    Args:
        temperature: T > 0, or a Schedule.
        adjustment: "shift", "smoothing" or "none".
        epsilon: share of the target that "smoothing" gives to the other classes, in [0, 1).
        dynamic: None (T for every row), "flsw" or "cwsm".
        beta: how far T_i strays from T, in units of T.
        gamma: exponent of "flsw".
        lowest_temperature: lower bound > 0 of T_i, which a large beta would make negative.
        scale_by_temperature: multiply each row by its T_i^2.
        weight: see DistillationLoss.

    Raises:
        ValueError: T or its bound <= 0, an unknown adjustment or kind of temperature, epsilon outside [0, 1),
            different numbers of classes or shapes, a batch without the labels that an adjustment needs.
        TypeError: `temperature` is neither a number nor a Schedule.
    """

    method = Method(
        papers=(
            Paper(
                "Wen et al.",
                2021,
                "Preparing Lessons: Improve Knowledge Distillation with Better Supervision",
                "https://arxiv.org/abs/1911.07471",
            ),
        ),
        evidence=("ka/probability_shift", "ka/lsr", "dtd/flsw", "dtd/cwsm"),
        restrictions=(
            "the same number of classes on both sides, in the same order",
            "an adjustment needs class labels",
            "a dynamic temperature depends on which rows share a batch, of each process alone",
        ),
        unverified="the paper's temperature and beta",
    )

    def __init__(
        self,
        temperature: float | Schedule = 4.0,
        adjustment: str = "shift",
        epsilon: float = 0.1,
        dynamic: str | None = None,
        beta: float = 1.0,
        gamma: float = 1.0,
        lowest_temperature: float = 1.0,
        scale_by_temperature: bool = True,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(temperature, weight)
        self.adjustment = choose("adjustment", adjustment, ("shift", "smoothing", "none"))
        self.dynamic = None if dynamic is None else choose("dynamic", dynamic, ("flsw", "cwsm"))
        if not 0 <= epsilon < 1:
            raise ValueError(
                f"epsilon must be in [0, 1), got {epsilon}: the label of a row that the teacher gets wrong is given "
                "1 - epsilon. Use 0.1."
            )
        if not lowest_temperature > 0:
            raise ValueError(
                f"lowest_temperature must be above 0, got {lowest_temperature}: logits are divided by it. Use 1."
            )
        self.epsilon = epsilon
        self.beta = beta
        self.gamma = gamma
        self.lowest_temperature = lowest_temperature
        self.scale_by_temperature = scale_by_temperature

    @property
    def reads_classes(self) -> bool:
        """To put mistakes right."""
        return self.adjustment != "none"

    def compare(self, student: Tensor, teacher: Tensor, targets: Targets) -> Tensor:
        """The divergence from the adjusted targets."""
        temperature = self._temperatures(student, teacher, targets)
        target = self._adjusted(teacher, targets, temperature)
        return soft_target_kl(
            student, target, temperature, targets.mask, scale_by_temperature=self.scale_by_temperature
        )

    def _temperatures(self, student: Tensor, teacher: Tensor, targets: Targets) -> float | Tensor:
        """T, or one temperature per row, (..., 1)."""
        base = self.temperature(targets.progress)
        if self.dynamic is None:
            return base
        if self.dynamic == "flsw":
            rows = flsw_temperature(student, teacher, base, self.beta, self.gamma, targets.mask)
        else:
            rows = cwsm_temperature(student, base, self.beta, targets.mask)
        return rows.clamp(min=self.lowest_temperature)[..., None]  # (..., 1)

    def _adjusted(self, teacher: Tensor, targets: Targets, temperature: float | Tensor) -> Tensor:
        if self.adjustment == "none":
            return teacher
        if targets.labels is None:
            raise ValueError(
                f"AdjustedTargetLoss with adjustment={self.adjustment!r} puts the teacher's mistakes right by the "
                "class labels, and the batch has none. Add labels to the data set, or use adjustment='none'."
            )
        if self.adjustment == "shift":
            return probability_shift(teacher, targets.labels)
        return label_smoothing(teacher, targets.labels, temperature, self.epsilon)
