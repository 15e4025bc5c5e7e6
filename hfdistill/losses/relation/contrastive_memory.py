"""Contrast with a memory of all training rows: CRD (Tian et al. 2020)."""

from __future__ import annotations

from torch import Tensor

from hfdistill.functional.contrastive import memory_similarity
from hfdistill.losses.layerwise import Layers
from hfdistill.losses.memory import MemoryContrastLoss
from hfdistill.losses.method import Method, Paper
from hfdistill.schedules import Schedule


class ContrastiveMemoryLoss(MemoryContrastLoss):
    """Tell the teacher's vector of the same row from those of K rows of other classes, and the student's likewise.

    With v the vectors of a row in a common space, each by a linear layer of its own and of length 1, M the memories of
    all training rows, p_i = exp(<M_t[i], v_s> / T) / Z_s, K negatives, c = K / rows and e = 1e-7:
    L_s = mean_rows [ -log(p_0 / (p_0 + c + e)) - sum_k log(c / (p_k + c + e)) ], number 0 being the positive, and
    L = L_s + L_t, in which the teacher's vector meets the student's memory. Z is rows * mean(exp(...)) of the first
    training batch, then fixed. After each step M becomes momentum M + (1 - momentum) v, of length 1. Rows outside the
    training set, in evaluation, have the other side's vector as their positive.

    Tian, Krishnan and Isola 2020, Contrastive Representation Distillation, https://arxiv.org/abs/1910.10699, section
    3, with the constants of the authors' code. Negatives are drawn with replacement.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher); memories 2 x (rows, dimension), in every checkpoint.

    Args:
        negatives: K, from rows of other classes, or from all other rows where rows have no class or all have one; at
            most the number of training rows less 1. The default is the authors' for 50,000 images.
        temperature: T > 0, which divides the cosines.
        momentum: share of what was remembered before, in [0, 1).
        positives: "exact" takes the row itself, "relax" any row of its class, each time drawn anew.
        dimension: D of the common space.
        layers: which student layer learns from which teacher layer; each pair has embedding layers and memories.
        pooling: "mean" of the real tokens, "cls", or "last" real token.
        weight: see DistillationLoss.

    Raises:
        ValueError: a keyword out of its range; a layer map that does not fit the two depths; no `bind_data` before the
            first batch; training batches without an index.
    """

    method = Method(
        papers=(
            Paper("Tian et al.", 2020, "Contrastive Representation Distillation", "https://arxiv.org/abs/1910.10699"),
        ),
        evidence=("crd/loss", "crd/loss_fixed_Z", "crd/mem_s", "crd/mem_t", "crd/Z_s", "crd/Z_t"),
        restrictions=(
            "a training set whose rows can be numbered: no streams",
            "remembers 8 * dimension bytes for each training row, in every checkpoint too",
        ),
    )

    def __init__(
        self,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        positives: str = "exact",
        dimension: int = 128,
        layers: Layers = ((-1, -1),),
        pooling: str = "mean",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(negatives, temperature, momentum, positives, dimension, layers, pooling, weight)

    def similarities(self, vectors: Tensor, memory: Tensor, index: Tensor) -> Tensor:
        """(B, K + 1)."""
        return memory_similarity(vectors, memory, index, self.temperature)
