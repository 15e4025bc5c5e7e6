"""Probabilistic knowledge transfer: each row's neighbours in the batch as a distribution (Passalis and Tefas 2018)."""

from __future__ import annotations

from torch import Tensor

from hfdistill.functional.relation import probabilistic_transfer
from hfdistill.losses.batch_relation import BatchRelationLoss
from hfdistill.losses.method import Method, Paper


class ProbabilisticTransferLoss(BatchRelationLoss):
    """Match the distribution of each row's neighbours in the batch (PKT).

    p_ij = (1 + cos(e_i, e_j)) / 2, scaled to sum to 1 over j; L = sum over layers of mean over all pairs (i, j) of
    p_teacher log(p_teacher / p_student), so the KL divergence of the rows divided by B once more. Rotations, and a
    scale of each row, change nothing.

    Passalis and Tefas 2018, Learning Deep Representations with Probabilistic Knowledge Transfer,
    https://arxiv.org/abs/1803.10837, equations 8 and 11, with the cosine kernel and, as in the authors' code, 1e-7
    added to lengths and within the logarithm.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher), of which one vector per row is taken.

    Args:
        layers: which student layer learns from which teacher layer.
        pooling: "mean" of the real tokens, "cls", or "last" real token.
        gather: relate the rows of all processes.
        weight: see DistillationLoss; 30000 in the code that most comparisons use.

    Raises:
        ValueError: an unknown pooling; a layer map that does not fit the two depths.
    """

    method = Method(
        (
            Paper(
                "Passalis and Tefas",
                2018,
                "Learning Deep Representations with Probabilistic Knowledge Transfer",
                "https://arxiv.org/abs/1803.10837",
            ),
        ),
        ("pkt",),
        ("at least 2 rows in a batch", "depends on which rows share a batch: see gather"),
        "the numbers of the paper's equations are from memory",
    )
    fewest_rows: int = 2

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """Divergence of the neighbourhoods of one pair of layers."""
        return probabilistic_transfer(student, teacher, mask)
