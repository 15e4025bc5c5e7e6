"""Correlation congruence: a kernel between the rows of a batch (Peng et al. 2019)."""

from __future__ import annotations

from torch import Tensor

from hfdistill.functional.relation import correlation_congruence
from hfdistill.losses.batch_relation import BatchRelationLoss
from hfdistill.losses.layerwise import Layers
from hfdistill.losses.method import Method, Paper
from hfdistill.schedules import Schedule


class CorrelationCongruenceLoss(BatchRelationLoss):
    """Match a Gaussian kernel between the rows of a batch (CC).

    K_ij = exp(-2 gamma) sum over p = 0..order of (2 gamma)^p cos(e_i, e_j)^p / p!, the Taylor polynomial of the kernel
    exp(-gamma |e_i - e_j|^2) of vectors of length 1; L = sum over layers of mean over all pairs (i, j) of (K_student -
    K_teacher)^2. Rotations, and a scale of each row, change nothing.

    Peng et al. 2019, Correlation Congruence for Knowledge Distillation, https://arxiv.org/abs/1904.01802, with order 2
    as in the paper; gamma = 0.4 is that of a reference code. The losses of this name that compare differences of
    neighbouring rows through a linear map have another formula; their weights mean nothing here.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher), of which one vector per row is taken.

    Args:
        layers: which student layer learns from which teacher layer.
        pooling: "mean" of the real tokens, "cls", or "last" real token.
        gamma: of the kernel, above 0; the larger, the more only near rows count.
        order: of the polynomial, at least 1.
        gather: relate the rows of all processes.
        weight: see DistillationLoss.

    Raises:
        ValueError: gamma or order out of range; an unknown pooling; a layer map that does not fit the two depths.
    """

    method = Method(
        (
            Paper(
                "Peng et al.",
                2019,
                "Correlation Congruence for Knowledge Distillation",
                "https://arxiv.org/abs/1904.01802",
            ),
        ),
        ("cc_gauss",),
        ("at least 2 rows in a batch", "depends on which rows share a batch: see gather"),
        "the paper's weight, and its sampling of rows by class, which is left to the data",
    )
    fewest_rows: int = 2

    def __init__(
        self,
        layers: Layers = ((-1, -1),),
        pooling: str = "mean",
        gamma: float = 0.4,
        order: int = 2,
        gather: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, pooling, gather, weight)
        if not gamma > 0 or order < 1:
            raise ValueError(
                f"CorrelationCongruenceLoss needs gamma above 0 and an order of at least 1, got {gamma} and {order}: "
                "otherwise the kernel is constant and teaches nothing. The paper's order is 2."
            )
        self.gamma = gamma
        self.order = order

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """Squared difference of the kernels of one pair of layers."""
        return correlation_congruence(student, teacher, mask, self.gamma, self.order)
