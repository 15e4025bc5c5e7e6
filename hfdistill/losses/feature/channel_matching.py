"""Teacher channels assigned to student channels (Yue et al. 2020, MGD, matching guided distillation)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, distributed

from hfdistill.anatomy import Anatomy
from hfdistill.functional.channel_matching import channel_cost, channel_groups, reduced_channels
from hfdistill.functional.feature import hidden_mse
from hfdistill.losses.base import choose
from hfdistill.losses.layerwise import Layers, LayerwiseLoss
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import Batch, Representations
from hfdistill.schedules import Schedule


class ChannelMatchingLoss(LayerwiseLoss):
    """Match each student channel with the teacher channels most like it, instead of projecting; nothing is trained.

    L = sum over pairs of mean_tokens mean_D (s_ic - t'_ic)^2. Each student channel c owns G = D_teacher // D_student
    teacher channels, by an exact assignment of least cost, the mean over rows of |s_c / |s_c| - t_k / |t_k||^2 over
    tokens; the remainder is left over. t' is their entry of the largest size at each token.

    Yue, Deng and Zhou 2020, Matching Guided Distillation, https://arxiv.org/abs/2008.09958, section 3. The paper
    compares before a ReLU, with margins and sums; transformers have no such place, so this is a plain mean over real
    tokens. Not the masked generative distillation of the same initials.

    The costs are gathered over the first `cost_batches` training batches of every `update_every`, over all processes,
    and then the assignment changes, and with it, by a jump, the loss. The first batch makes a first assignment. With
    768 channels an update takes seconds per pair of layers, on the CPU. Costs and assignment are in checkpoints.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher), D_student <= D_teacher; of images the patches only.

    Args:
        layers: which student layer learns from which teacher layer.
        reduction: "absolute_max" keeps the sign of the entry of largest size; "max" takes the largest; "sparse" gives
            each student channel one teacher channel.
        update_every: training batches (micro-batches) between two assignments; the paper updates every epoch or two.
        cost_batches: how many of them the costs are gathered over, at most `update_every`.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown reduction, numbers of batches that do not fit; a student wider than its teacher; a layer
            map that does not fit the two depths.
    """

    cost: Tensor
    rows: Tensor
    batches: Tensor
    groups: Tensor
    projects: ClassVar[bool] = False
    places: ClassVar[bool] = True
    method: ClassVar[Method | None] = Method(
        papers=(Paper("Yue et al.", 2020, "Matching Guided Distillation", "https://arxiv.org/abs/2008.09958"),),
        evidence=("mgd/cost", "mgd/amp"),
        restrictions=(
            "a student not wider than its teacher",
            "the same places on both sides",
            "the loss jumps where the assignment changes",
        ),
        unverified="the plain mean, without margins and without the paper's factors, is ours",
    )

    def __init__(
        self,
        layers: Layers = "uniform(embeddings=False)",
        reduction: str = "absolute_max",
        update_every: int = 2000,
        cost_batches: int = 50,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight=weight)
        self.reduction = choose("reduction", reduction, ("absolute_max", "max", "sparse"))
        if not 1 <= cost_batches <= update_every:
            raise ValueError(
                f"expected 1 <= cost_batches <= update_every, got {cost_batches} and {update_every}: costs are "
                "gathered between two assignments. Write update_every=2000, cost_batches=50."
            )
        self.update_every = update_every
        self.cost_batches = cost_batches
        self._forget(0, 1, 1)

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map; refuse a student that is wider than its teacher."""
        super().bind(student, teacher)
        if student.width > teacher.width:
            raise ValueError(
                f"ChannelMatchingLoss needs a student not wider than its teacher, got {student.width} and "
                f"{teacher.width}: some of its channels would have no teacher. Use HiddenStateLoss, which projects."
            )
        if self.cost.shape != (len(self.pairs), student.width, teacher.width):
            self._forget(len(self.pairs), student.width, teacher.width)

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum over the mapped layers; in training mode the costs are gathered on the way."""
        aligned = [
            self.aligned(student.hidden_states[ours], teacher.hidden_states[theirs], batch.mask)
            for ours, theirs in self.pairs
        ]
        if self.training:
            self._observe(aligned, batch)
        values = [self.compare(*parts, position) for position, parts in enumerate(aligned)]
        return torch.stack(values).sum()

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None, position: int = 0) -> Tensor:
        """The loss of the pair of layers at `position`, with its assignment as it is."""
        reduction = "max" if self.reduction == "max" else "absolute_max"
        return hidden_mse(student, reduced_channels(teacher, self.groups[position], reduction), mask)

    def _forget(self, pairs: int, student_width: int, teacher_width: int) -> None:
        """Begin without costs, and with an assignment in the order of the channels."""
        size = 1 if self.reduction == "sparse" else teacher_width // student_width
        order = torch.arange(student_width * size).view(student_width, size)
        self.register_buffer("cost", torch.zeros(pairs, student_width, teacher_width))
        self.register_buffer("rows", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))
        self.register_buffer("groups", order.repeat(pairs, 1, 1))  # (pairs, D_student, G)

    @torch.no_grad()
    def _observe(self, aligned: list[tuple[Tensor, Tensor, Tensor | None]], batch: Batch) -> None:
        """Add the costs of one batch, and assign anew where it is time to."""
        turn = int(self.batches) % self.update_every
        first = int(self.batches) == 0
        self.batches += 1
        if turn >= self.cost_batches:
            return
        rows = batch.row_count().to(self.rows)
        costs = torch.stack([channel_cost(*parts) for parts in aligned]).to(self.cost) * rows
        if distributed.is_available() and distributed.is_initialized():  # the same assignment on all processes
            distributed.all_reduce(costs)
            distributed.all_reduce(rows)
        self.cost.copy_(costs if turn == 0 else self.cost + costs)
        self.rows.copy_(rows if turn == 0 else self.rows + rows)
        if self.rows > 0 and (first or turn == self.cost_batches - 1):
            size = self.groups.shape[-1]
            self.groups.copy_(torch.stack([channel_groups(cost / self.rows, size) for cost in self.cost]))
