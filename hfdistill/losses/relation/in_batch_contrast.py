"""Contrast with the other rows of the batch: InfoNCE (van den Oord et al. 2018)."""

from __future__ import annotations

from torch import Tensor

from hfdistill.functional.contrastive import in_batch_contrast
from hfdistill.losses.embedding import EmbeddedLoss, above_zero
from hfdistill.losses.gathering import gathered_rows
from hfdistill.losses.layerwise import Layers
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import Batch
from hfdistill.schedules import Schedule


class InBatchContrastLoss(EmbeddedLoss):
    """Find the teacher's vector of the same row among those of the batch: contrast without a memory.

    L = mean_rows -log softmax_j(cos(v_s, v_t of row j) / T) at the row itself, v being the vectors in a common space,
    each by a linear layer of its own. Rows of padding alone do not count. One row alone gives 0; for B rows that are
    all alike L = log B.

    Van den Oord, Li and Vinyals 2018, Representation Learning with Contrastive Predictive Coding,
    https://arxiv.org/abs/1807.03748, equation 4. The paper contrasts time steps; teacher and student as the two views
    are the form in which CRD is used without a memory.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher).

    Args:
        temperature: T > 0, which divides the cosines.
        dimension: D of the common space.
        layers: which student layer learns from which teacher layer; each pair has embedding layers of its own.
        pooling: "mean" of the real tokens, "cls", or "last" real token.
        gather: contrast with the rows of all processes instead of each process's own.
        weight: see DistillationLoss.

    Raises:
        ValueError: a keyword out of its range; a layer map that does not fit the two depths.
    """

    method = Method(
        papers=(
            Paper(
                "van den Oord et al.",
                2018,
                "Representation Learning with Contrastive Predictive Coding",
                "https://arxiv.org/abs/1807.03748",
            ),
        ),
        evidence=("infonce",),
        restrictions=(
            "negatives are the other rows of the micro-batch: its value depends on the batch size, and accumulation "
            "does not add negatives",
            "at least 2 rows in a batch, better 64",
        ),
        unverified="its temperature and weight for distillation, which no paper of ours fixes",
    )
    fewest_rows: int = 2

    def __init__(
        self,
        temperature: float = 0.1,
        dimension: int = 128,
        layers: Layers = ((-1, -1),),
        pooling: str = "mean",
        gather: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(dimension, layers, pooling, weight)
        self.temperature = above_zero("temperature", temperature, "it divides cosines; 0.05 to 0.5 is usual")
        self.gather = gather

    def contrast(self, position: int, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """InfoNCE over the rows of the batch."""
        real = batch.real_rows()
        if self.gather:
            student, teacher = gathered_rows(student), gathered_rows(teacher)
            real = None if real is None else gathered_rows(real)
        return in_batch_contrast(student, teacher, self.temperature, real)
