"""Feature map transfer, all layers at once or one after another (MobileBERT)."""

from __future__ import annotations

from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.functional.mobilebert import check_progressive, feature_map_transfer, feature_statistics, layer_in_turn
from hfdistill.losses.base import choose
from hfdistill.losses.layerwise import Layers, LayerwiseLoss
from hfdistill.losses.method import Method
from hfdistill.losses.papers import MOBILEBERT
from hfdistill.representations import Batch, Representations
from hfdistill.schedules import Schedule


class FeatureMapLoss(LayerwiseLoss):
    """Match the teacher's hidden states apart from their scale, or what that leaves out, their means and variances.

    L = sum over pairs of layers of the mean over real tokens of: part="normalized", mean_D (LN(W h_s) - LN(h_t))^2, LN
    a layer norm without weights; "mean", (mean_D h_s - mean_D h_t)^2; "variance", |var_D h_s - var_D h_t|. Together
    the three are the published loss; each is a term with a weight of its own. With `progressive` only one layer learns
    at a time, from the first to the last, each for an equal share of the run, with 1 / number of layers.

    Sun et al. 2020, MobileBERT, https://arxiv.org/abs/2004.02984, equation 1, as the authors' code splits it (factors
    100, 5000 and 5). The paper's student has bottlenecks as wide as the teacher's states and needs no W, which is the
    identity where the widths agree; means and variances are compared without one.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher).

    Args:
        layers: which student layer learns from which teacher layer; without the embedding output by default.
        part: "normalized", "mean" or "variance".
        progressive: share of the run, in (0, 1], in which the layers take turns; None: all learn at once. After it the
            loss is 0; let the weight end there too. The paper lets earlier layers go on with a tenth of the learning
            rate, which this does not.
        shared_projector: one W for all pairs of layers of the same widths instead of one per pair.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown part; `progressive` outside (0, 1]; a layer map that does not fit the two depths.
    """

    method = Method(
        papers=(MOBILEBERT,),
        evidence=("mobilebert/fmt", "mobilebert/stats"),
        restrictions=(
            "progressive: neither freezes earlier layers nor lowers their learning rate",
            "means and variances: not as the authors' code, which compares with all teacher layers by mistake",
        ),
        unverified="formulas read in the authors' TensorFlow code, which was not run",
    )

    def __init__(
        self,
        layers: Layers = "uniform(embeddings=False)",
        part: str = "normalized",
        progressive: float | None = None,
        shared_projector: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, shared_projector, weight)
        self.part = choose("part", part, ("normalized", "mean", "variance"))
        self.progressive = progressive
        check_progressive(progressive)

    def projected_widths(self, student: Anatomy, teacher: Anatomy) -> list[tuple[int, int]]:
        """Both widths of each pair of layers that is projected; statistics of any two widths need not be."""
        return super().projected_widths(student, teacher) if self.part == "normalized" else []

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum of `compare` over the mapped layers, or the layer's whose turn it is."""
        if self.progressive is None:
            return super().forward(student, teacher, batch)
        position, share = layer_in_turn(batch.progress, len(self.pairs), self.progressive)
        ours, theirs = self.pairs[position]
        states = student.hidden_states[ours], teacher.hidden_states[theirs]
        state, target, mask = self.aligned(position, *states, batch.mask)
        return share * self.compare(self.project(position, state), target, mask)

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """One part of one pair of layers."""
        if self.part == "normalized":
            return feature_map_transfer(student, teacher, mask)
        means, variances = feature_statistics(student, teacher, mask)
        return means if self.part == "mean" else variances
