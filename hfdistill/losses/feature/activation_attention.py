"""Attention transfer: where a layer is active (Zagoruyko and Komodakis 2017)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hfdistill.functional.activation import activation_attention
from hfdistill.losses.base import choose
from hfdistill.losses.layerwise import Layers, LayerwiseLoss
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import Batch
from hfdistill.schedules import Schedule


class ActivationAttentionLoss(LayerwiseLoss):
    """Match which tokens a layer is most active at, whatever the widths.

    a_i = sum_d |h_id|^p is the energy of token i, Q = a / |a| over the tokens of a row. variant="code": L = sum over
    pairs of mean_tokens (Q_s - Q_t)^2; variant="paper": the sum over pairs of mean_rows |Q_s - Q_t|, not squared,
    without the paper's beta / 2. This is the activity of states, not the attention probabilities of heads, which
    AttentionMapLoss compares; the paper's variant on gradients is left out.

    Zagoruyko and Komodakis 2017, Paying More Attention to Attention, https://arxiv.org/abs/1612.03928, equation 2;
    "code" is the authors', which their later weight of 1000 is meant for: longer rows need a larger one.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher); of images the patches only.

    Args:
        layers: which student layer learns from which teacher layer.
        variant: "code" or "paper".
        power: p >= 1; the larger, the more the largest entries of a state count.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown variant; p < 1; a layer map that does not fit the two depths.
    """

    projects: ClassVar[bool] = False
    places: ClassVar[bool] = True
    method: ClassVar[Method | None] = Method(
        papers=(
            Paper(
                "Zagoruyko and Komodakis",
                2017,
                "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via "
                "Attention Transfer",
                "https://arxiv.org/abs/1612.03928",
            ),
        ),
        evidence=("at/code", "at/code_masked", "at/paper"),
        restrictions=("the same places on both sides", "not the variant on gradients"),
    )

    def __init__(
        self,
        layers: Layers = "uniform(embeddings=False)",
        variant: str = "code",
        power: float = 2.0,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight=weight)
        self.variant = choose("variant", variant, ("code", "paper"))
        if not power >= 1:
            raise ValueError(
                f"power must be at least 1, got {power}: below, the gradient is infinite at an entry of 0. Use 2, the "
                "paper's, or 1."
            )
        self.power = power

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """The difference of the two maps of one pair of layers."""
        reduction = "mean" if self.variant == "code" else "paper"
        return activation_attention(student, teacher, mask, self.power, reduction)

    def count(self, batch: Batch) -> Tensor:
        """Real tokens in the code's variant, rows in the paper's."""
        return batch.token_count() if self.variant == "code" else batch.row_count()
