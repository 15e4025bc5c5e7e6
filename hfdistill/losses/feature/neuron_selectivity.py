"""Neuron selectivity: which tokens each channel of a layer answers to (Huang and Wang 2017)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hfdistill.functional.activation import neuron_selectivity
from hfdistill.losses.base import choose
from hfdistill.losses.layerwise import Layers, LayerwiseLoss
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import Batch
from hfdistill.schedules import Schedule


class NeuronSelectivityLoss(LayerwiseLoss):
    """Match the distribution of a layer's channels, whatever their number and order.

    A channel is the direction u of its values over the tokens of a row. L = sum over pairs of mean_rows MMD^2, the
    squared maximum mean discrepancy mean k(t, t') + mean k(s, s') - 2 mean k(s, t) between the student's channels s
    and the teacher's t, with k(u, v) = (u . v)^2 (polynomial), u . v (linear) or exp(-|u - v|^2 / (2 sigma^2))
    (gaussian).

    Huang and Wang 2017, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer,
    https://arxiv.org/abs/1707.01219. What TextBrewer calls "nst" is TokenGramLoss.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher); of images the patches only.

    Args:
        layers: which student layer learns from which teacher layer.
        kernel: "polynomial", which every published code uses, "linear" or "gaussian", whose memory is B D^2.
        variance: sigma^2 of the gaussian kernel; None: each row's mean squared distance between the two models'
            channels, held constant. The published code has no gaussian kernel: this choice is ours.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown kernel; a variance that is not positive, or that the kernel does not have; a layer map
            that does not fit the two depths.
    """

    projects: ClassVar[bool] = False
    places: ClassVar[bool] = True
    method: ClassVar[Method | None] = Method(
        papers=(
            Paper(
                "Huang and Wang",
                2017,
                "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
                "https://arxiv.org/abs/1707.01219",
            ),
        ),
        evidence=("nst/poly", "nst/poly_masked", "nst/gauss_fixed"),
        restrictions=("the same places on both sides",),
        unverified="the gaussian kernel's variance where none is given",
    )

    def __init__(
        self,
        layers: Layers = "uniform(embeddings=False)",
        kernel: str = "polynomial",
        variance: float | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight=weight)
        self.kernel = choose("kernel", kernel, ("polynomial", "linear", "gaussian"))
        if variance is not None and (kernel != "gaussian" or not variance > 0):
            raise ValueError(
                f"variance must be above 0 and is for the gaussian kernel alone, got {variance} for {kernel!r}. It "
                "divides squared distances; leave it out to have it measured."
            )
        self.variance = variance

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """The discrepancy of one pair of layers."""
        return neuron_selectivity(student, teacher, mask, self.kernel, self.variance)

    def count(self, batch: Batch) -> Tensor:
        """Rows."""
        return batch.row_count()
