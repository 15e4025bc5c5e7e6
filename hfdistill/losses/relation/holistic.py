"""Holistic structure: a critic that tells the student's answers from the teacher's (Liu et al. 2019)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy
from hfdistill.functional.reductions import masked_mean
from hfdistill.losses.base import DistillationLoss
from hfdistill.losses.logits import TOKEN_HEADS
from hfdistill.losses.method import Method
from hfdistill.losses.papers import STRUCTURED
from hfdistill.losses.pooling import pooled_vector
from hfdistill.representations import Batch, Needs, Representations
from hfdistill.schedules import Schedule


class HolisticLoss(DistillationLoss):
    """Give answers that a critic cannot tell from the teacher's answers to the same input.

    The critic C scores an input e with a distribution p over the classes; the value is its gap, mean_rows C(e, p_t) -
    mean_rows C(e, p_s), the Wasserstein distance that it sees. The one scalar trains both: its gradient lowers the gap
    for the student, and for the critic raises it, less penalty mean_rows (|dC / dp| - 1)^2 at a random mixture of p_s
    and p_t. So the gradient is not that of the value, which is below 0 where the critic is wrong. e is the mean of the
    teacher's embedding output, on both sides, as the paper's image is.

    Liu et al. 2019, Structured Knowledge Distillation for Semantic Segmentation, https://arxiv.org/abs/1903.04197,
    the holistic loss, written for images with a class at each pixel, with a convolutional critic; that it scores rows,
    by two hidden layers, is ours. The penalty is that of Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028.

    Shapes: logits (B, K); the teacher's embedding output (B, N, D_teacher).

    Args:
        width: of the critic's hidden layers, at least 1.
        penalty: what holds the critic's slope at 1, above 0.
        weight: see DistillationLoss; it scales the critic's gradient too, to which Adam is indifferent.

    Raises:
        ValueError: width or penalty out of range; token-level heads; fewer than two classes, or different ones.
    """

    method: ClassVar[Method | None] = Method(
        papers=(STRUCTURED,),
        evidence=("limits and gradients of its own tests",),
        restrictions=("row-level heads", "its value may be below 0", "its gradient is not that of its value"),
        unverified="the critic of rows is ours; not run against the authors' code",
    )

    def __init__(self, width: int = 128, penalty: float = 10.0, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        if width < 1 or not penalty > 0:
            raise ValueError(
                f"HolisticLoss needs a width of at least 1 and a penalty above 0, got {width} and {penalty}. Without "
                "the penalty the critic's scores grow without bound. Use 128 and 10."
            )
        self.width, self.penalty = width, penalty
        self.critic = nn.Sequential()

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Build the critic, or refuse heads whose answers it cannot score."""
        if student.classes != teacher.classes or teacher.classes < 2 or teacher.head in TOKEN_HEADS:
            raise ValueError(
                f"HolisticLoss scores one distribution per row, over the same classes, got {student.head!r} with "
                f"{student.classes} (student) and {teacher.head!r} with {teacher.classes} (teacher). Use row-level "
                "classifiers of at least 2 classes, or SoftTargetLoss, which compares answers one by one."
            )
        inputs = teacher.width_of(0) + teacher.classes
        if not self.critic or next(self.critic.parameters()).shape[1] != inputs:
            self.critic = nn.Sequential(
                nn.Linear(inputs, self.width),
                nn.SiLU(),  # smooth: the penalty has to be differentiated twice
                nn.Linear(self.width, self.width),
                nn.SiLU(),
                nn.Linear(self.width, 1, bias=False),  # a constant would cancel in the gap
            )

    def needs(self) -> tuple[Needs, Needs]:
        """Both models' logits, and the teacher's embedding output."""
        return Needs(logits=True), Needs(logits=True, hidden_states=frozenset({0}))

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The gap that the critic sees, with the gradients of student and critic."""
        answer = student.taught_logits
        if answer is None or teacher.logits is None or answer.dim() != 2:
            shape = None if answer is None else tuple(answer.shape)
            raise ValueError(
                f"HolisticLoss needs logits (B, K) of both models, got {shape} (student). Its critic scores one "
                "distribution per row; load row-level classifiers."
            )
        rows = batch.real_rows()
        dtype = next(self.critic.parameters()).dtype
        with torch.autocast(answer.device.type, enabled=False):  # half precision is too coarse for slopes
            ours, theirs = answer.to(dtype).softmax(-1), teacher.logits.detach().to(dtype).softmax(-1)
            inputs = pooled_vector(teacher.hidden_states[0].detach().to(dtype), batch.mask, "mean")  # (B, D_teacher)
            frozen = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
            scores = [self._scores(inputs, answers, frozen) for answers in (theirs, ours)]
            gap = masked_mean(scores[0] - scores[1], rows)
            if not torch.is_grad_enabled():
                return gap
            critic = self._critic_loss(inputs, ours.detach(), theirs, rows)
            return gap + critic - critic.detach()

    def count(self, batch: Batch) -> Tensor:
        """Rows."""
        return batch.row_count()

    def _scores(self, inputs: Tensor, answers: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """Scores (B,) by the critic, or by one with other parameters."""
        given = torch.cat([inputs, answers], dim=-1)  # (B, D_teacher + K)
        scores: Tensor = self.critic(given) if parameters is None else _called(self.critic, parameters, given)
        return scores[:, 0]

    def _critic_loss(self, inputs: Tensor, ours: Tensor, theirs: Tensor, rows: Tensor | None) -> Tensor:
        """What the critic lowers: minus the gap, and the penalty on its slope between the two answers."""
        share = torch.rand_like(ours[:, :1])
        mixed = (share * ours + (1 - share) * theirs).requires_grad_()  # (B, K)
        (slope,) = torch.autograd.grad(self._scores(inputs, mixed).sum(), mixed, create_graph=True)
        steepness = (torch.linalg.vector_norm(slope, dim=-1) - 1).square()  # (B,)
        return masked_mean(self._scores(inputs, ours) - self._scores(inputs, theirs) + self.penalty * steepness, rows)


def _called(module: nn.Module, parameters: dict[str, Tensor], given: Tensor) -> Tensor:
    """What a module gives with these parameters in place of its own: through them no gradient reaches it."""
    result: Tensor = torch.func.functional_call(module, parameters, (given,))
    return result
