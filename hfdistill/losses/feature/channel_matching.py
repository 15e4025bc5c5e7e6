"""Teacher channels assigned to student channels (Yue et al. 2020, MGD, matching guided distillation)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, distributed

from hfdistill.anatomy import Anatomy
from hfdistill.functional.channel_matching import channel_cost, channel_groups, reduced_channels
from hfdistill.functional.feature import hidden_mse
from hfdistill.losses.base import choose
from hfdistill.losses.layerwise import Layers, LayerwiseLoss, pair_widths
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
        self._forget([])

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Resolve the layer map; refuse a student that is wider than its teacher."""
        super().bind(student, teacher)
        widths = pair_widths(self.pairs, student, teacher)
        for own, other in widths:
            if own > other:
                raise ValueError(
                    f"ChannelMatchingLoss needs a student not wider than its teacher, got {own} and {other} in layers "
                    f"{self.pairs}: some of its channels would have no teacher. Use HiddenStateLoss, which projects, "
                    "or map layers of the teacher that are wide enough."
                )
        if self.widths != widths:
            self._forget(widths)

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Sum over the mapped layers; in training mode the costs are gathered on the way."""
        aligned = [
            self.aligned(position, student.hidden_states[ours], teacher.hidden_states[theirs], batch.mask)
            for position, (ours, theirs) in enumerate(self.pairs)
        ]
        if self.training:
            self._observe(aligned, batch)
        values = [self.compare(*parts, position) for position, parts in enumerate(aligned)]
        return torch.stack(values).sum()

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None, position: int = 0) -> Tensor:
        """The loss of the pair of layers at `position`, with its assignment as it is."""
        reduction = "max" if self.reduction == "max" else "absolute_max"
        return hidden_mse(student, reduced_channels(teacher, self._members(position), reduction), mask)

    def _forget(self, widths: list[tuple[int, int]]) -> None:
        """Begin without costs, and with an assignment in the order of the channels; of the widths of each pair."""
        self.widths = widths
        sizes = [(own, self._size(own, other)) for own, other in widths]
        orders = [torch.arange(own * size).view(own, size) for own, size in sizes]
        shape = [max((pair[side] for pair in widths), default=0) for side in (0, 1)]
        self.register_buffer("cost", torch.zeros(len(widths), *shape))
        self.register_buffer("rows", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))
        # (pairs, D_student, G), of which pairs of narrower layers fill their part alone
        self.register_buffer("groups", torch.zeros(len(widths), *_largest(orders), dtype=torch.long))
        for place, order in zip(self.groups, orders, strict=True):
            place[: order.shape[0], : order.shape[1]] = order

    def _size(self, student_width: int, teacher_width: int) -> int:
        """G, the teacher channels of each student channel."""
        return 1 if self.reduction == "sparse" else teacher_width // student_width

    def _members(self, position: int) -> Tensor:
        """The assignment of the pair of layers at `position`, (D_student, G)."""
        own, other = self.widths[position]
        return self.groups[position, :own, : self._size(own, other)]

    @torch.no_grad()
    def _observe(self, aligned: list[tuple[Tensor, Tensor, Tensor | None]], batch: Batch) -> None:
        """Add the costs of one batch, and assign anew where it is time to."""
        seen = int(self.batches)
        turn = seen % self.update_every
        self.batches += 1
        if turn >= self.cost_batches:
            return
        rows = batch.row_count().to(self.rows)
        costs = torch.zeros_like(self.cost)
        for cost, parts in zip(costs, aligned, strict=True):
            cost[: parts[0].shape[-1], : parts[1].shape[-1]] = channel_cost(*parts) * rows
        if distributed.is_available() and distributed.is_initialized():  # the same assignment on all processes
            distributed.all_reduce(costs)
            distributed.all_reduce(rows)
        self.cost.copy_(costs if turn == 0 else self.cost + costs)
        self.rows.copy_(rows if turn == 0 else self.rows + rows)
        if (seen == 0 or turn == self.cost_batches - 1) and self.rows > 0:
            for position, (own, other) in enumerate(self.widths):
                cost = self.cost[position, :own, :other] / self.rows
                self._members(position).copy_(channel_groups(cost, self._size(own, other)))


def _largest(orders: list[Tensor]) -> tuple[int, int]:
    return max((len(order) for order in orders), default=0), max((order.shape[1] for order in orders), default=0)
