"""Inner products between the tokens of a layer: TextBrewer's "nst" (Yang et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hfdistill.functional.activation import token_gram
from hfdistill.losses.layerwise import Layers, LayerwiseLoss
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import Batch
from hfdistill.schedules import Schedule


class TokenGramLoss(LayerwiseLoss):
    """Match the inner products of a layer's token states with each other, whatever the widths.

    L = sum over pairs of mean_(i, j) (x_i . x_j / D_student - y_i . y_j / D_teacher)^2 over pairs of real tokens, x
    the student's states and y the teacher's. Unlike TokenPairLoss it sees the lengths of the states, which differ from
    family to family.

    Yang et al. 2020, TextBrewer, https://arxiv.org/abs/2002.12620, where it is called "nst" and "mmd" (code; the
    method of that name is NeuronSelectivityLoss). There the two factors may be two layers of one model, as
    `hfdistill.functional.token_gram` can have it; here they are one.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher); of images the patches only.

    Args:
        layers: which student layer learns from which teacher layer.
        weight: see DistillationLoss.

    Raises:
        ValueError: a layer map that does not fit the two depths.
    """

    projects: ClassVar[bool] = False
    places: ClassVar[bool] = True
    method: ClassVar[Method | None] = Method(
        papers=(
            Paper(
                "Yang et al.",
                2020,
                "TextBrewer: An Open-Source Knowledge Distillation Toolkit for Natural Language Processing",
                "https://arxiv.org/abs/2002.12620",
            ),
        ),
        evidence=("token_gram/masked",),
        restrictions=("the same places on both sides", "one layer of each model at a time"),
    )

    def __init__(self, layers: Layers = "uniform(embeddings=False)", weight: float | Schedule = 1.0) -> None:
        super().__init__(layers, weight=weight)

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """The difference of the two products of one pair of layers."""
        return token_gram(student, student, teacher, teacher, mask)

    def count(self, batch: Batch) -> Tensor:
        """Pairs of real tokens."""
        return batch.pair_count()
