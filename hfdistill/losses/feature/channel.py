"""Channel-wise distillation: each channel as a distribution over the tokens (Shu et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.functional.activation import channel_kl
from hfdistill.losses.base import choose
from hfdistill.losses.layerwise import Layers, LayerwiseLoss
from hfdistill.losses.logits import TOKEN_HEADS
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import Batch, Needs, Representations
from hfdistill.schedules import Schedule

_MAPS = (*TOKEN_HEADS, "")  # "": not known, seen when it runs
_ADVICE = (
    "A channel is a distribution over the tokens, and a row of logits (B, K) has none. Use knowledge='hidden', or "
    "SoftTargetLoss for the classes of a row."
)


class ChannelLoss(LayerwiseLoss):
    """Match where in a row each channel is strongest.

    L = sum over pairs of T^2 mean_rows mean_channels KL(phi_t || phi_s), phi = softmax over the real tokens of x / T.
    With knowledge="hidden" the channels are the entries of the states of mapped layers, the student's projected where
    the widths differ; with knowledge="logits" they are the classes of a token-level head, and no layer is read. Rows
    of one token teach nothing.

    Shu et al. 2020, Channel-wise Knowledge Distillation for Dense Prediction, https://arxiv.org/abs/2011.13256.
    T = 4 with a weight of 3 for logits is the authors', 50 for features from memory.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher), of images the patches only; logits (B, N, K).

    Args:
        layers: which student layer learns from which teacher layer; by default the last from the last.
        knowledge: "hidden" or "logits".
        temperature: T > 0; the larger, the more tokens count.
        weight: see DistillationLoss.

    Raises:
        ValueError: unknown knowledge; T <= 0; a row-level head or different classes under "logits"; a layer map that
            does not fit the two depths.
    """

    places: ClassVar[bool] = True
    method: ClassVar[Method | None] = Method(
        papers=(
            Paper(
                "Shu et al.",
                2020,
                "Channel-wise Knowledge Distillation for Dense Prediction",
                "https://arxiv.org/abs/2011.13256",
            ),
        ),
        evidence=("cwd/T4", "cwd/masked"),
        restrictions=("the same places on both sides", "logits of token-level heads only"),
        unverified="the weight of 50 for features",
    )

    def __init__(
        self,
        layers: Layers = ((-1, -1),),
        knowledge: str = "hidden",
        temperature: float = 4.0,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight=weight)
        self.knowledge = choose("knowledge", knowledge, ("hidden", "logits"))
        if not temperature > 0:
            raise ValueError(
                f"temperature must be above 0, got {temperature}: channels are divided by it. Use 1 to 4."
            )
        self.temperature = temperature

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map and build the projectors, or refuse heads that give no token a class."""
        if self.knowledge == "hidden":
            super().bind(student, teacher)
            return
        if student.head not in _MAPS or teacher.head not in _MAPS:
            raise ValueError(
                f"ChannelLoss(knowledge='logits') needs token-level heads, got {student.head!r} (student) and "
                f"{teacher.head!r} (teacher). {_ADVICE}"
            )
        if student.classes != teacher.classes:
            raise ValueError(
                f"ChannelLoss(knowledge='logits') needs the same classes on both sides, got {student.classes} "
                f"(student) and {teacher.classes} (teacher): class by class they are compared. Load the student with "
                f"num_labels={teacher.classes}, or use knowledge='hidden'."
            )

    def needs(self) -> tuple[Needs, Needs]:
        """The hidden states of the mapped layers, or both models' logits."""
        return super().needs() if self.knowledge == "hidden" else (Needs(logits=True), Needs(logits=True))

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum over the mapped layers, or the loss of the logits."""
        if self.knowledge == "hidden":
            return super().forward(student, teacher, batch)
        ours, theirs = student.taught_logits, teacher.logits
        if ours is None or theirs is None or ours.dim() != 3:
            shape = "none" if ours is None or theirs is None else str(tuple(ours.shape))
            raise ValueError(f"ChannelLoss(knowledge='logits') needs logits (B, N, K), got {shape}. {_ADVICE}")
        return self.compare(ours, theirs, batch.mask)

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """The divergence of one pair of layers, or of the logits."""
        return channel_kl(student, teacher, self.temperature, mask)

    def count(self, batch: Batch) -> Tensor:
        """Rows."""
        return batch.row_count()
