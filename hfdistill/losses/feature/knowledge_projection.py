"""Knowledge projection: the teacher's states in the student's space, between layers found in training (Zhi 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, distributed, nn

from hfdistill.anatomy import Anatomy
from hfdistill.functional.activation import projected_mse
from hfdistill.layer_map import LayerMap
from hfdistill.losses.layerwise import LayerwiseLoss, pair_widths
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import Batch, Representations
from hfdistill.schedules import Schedule


class KnowledgeProjectionLoss(LayerwiseLoss):
    """Project the teacher's states into the student's width, and find out which two layers fit best.

    L = mean over the candidate pairs of layers that are left of mean_tokens mean_D (n(h_s) - n(P h_t))^2, with one P
    of shape (D_student, D_teacher) for each candidate and n the layer normalisation without weights. Every student
    layer named is a candidate with every teacher layer named. While the pairs are selected, the worst share of those
    left is dropped at equal intervals of the run, by a running mean of their losses over all processes, until one
    remains; with it the rest of the run goes on.

    Zhi, Li, Liu and Wu 2017, Knowledge Projection for Effective Design of Thinner and Faster Deep Neural Networks,
    https://arxiv.org/abs/1710.09505. Only its abstract was read: the direction of P and the choice of layers in
    training are the paper's; the formula, the intervals, the share and the running mean are reconstructed. n is our
    guard: P and student could otherwise meet at 0. The paper evaluates candidates on held-out batches, this on
    those it trains on.

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher); of images the patches only.

    Args:
        student_layers: candidates of the student, 0 the embedding output, negative from the end; None: the layers at
            one third, two thirds and the whole of its depth.
        teacher_layers: candidates of the teacher, likewise.
        dropped: share of the candidates left that each selection drops, in (0, 1); at least one is dropped.
        selection: share of the run within which one pair remains, in [0, 1]; the selections are spread over it evenly.
            0 takes the first pair named at once.
        momentum: of the running mean, in [0, 1).
        weight: see DistillationLoss; the paper drops the loss at the end, as a Piecewise schedule does.

    Raises:
        ValueError: a share or momentum out of its range; no layer, or one that a model does not have.
    """

    projects: ClassVar[bool] = False  # not the student's states
    places: ClassVar[bool] = True
    running: Tensor
    left: Tensor
    method: ClassVar[Method | None] = Method(
        papers=(
            Paper(
                "Zhi et al.",
                2017,
                "Knowledge Projection for Effective Design of Thinner and Faster Deep Neural Networks",
                "https://arxiv.org/abs/1710.09505",
            ),
        ),
        evidence=("limits and gradients of its own tests",),
        restrictions=("the same places on both sides",),
        unverified="formula and selection reconstructed from the abstract",
    )

    def __init__(
        self,
        student_layers: Sequence[int] | None = None,
        teacher_layers: Sequence[int] | None = None,
        dropped: float = 0.5,
        selection: float = 0.5,
        momentum: float = 0.9,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(weight=weight)
        for name, value, fits in (
            ("dropped", dropped, 0 < dropped < 1),
            ("selection", selection, 0 <= selection <= 1),
            ("momentum", momentum, 0 <= momentum < 1),
        ):
            if not fits:
                raise ValueError(
                    f"{name} must be a share between 0 and 1, got {value}: of the candidates left (dropped), of the "
                    "run (selection), or of the old mean in the new (momentum). Take 0.5, 0.5 and 0.9."
                )
        self.candidates = (student_layers, teacher_layers)
        self.dropped, self.selection, self.momentum = dropped, selection, momentum
        self.projections = nn.ParameterList()  # of each candidate, (D_teacher, D_student)
        self.register_buffer("running", torch.empty(0))  # (candidates,) running mean of each one's loss
        self.register_buffer("left", torch.empty(0, dtype=torch.bool))  # (candidates,) False: dropped
        self._known: list[int] | None = None  # the numbers of those left, so that the host need not wait for `left`
        self._places = torch.empty(0, dtype=torch.long)  # the same where `left` lies
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Pair all candidates, and make a projection for each."""
        ours, theirs = (
            _thirds(anatomy.depth) if layers is None else layers
            for layers, anatomy in zip(self.candidates, (student, teacher), strict=True)
        )
        self.layers = LayerMap.explicit([(own, other) for own in ours for other in theirs])
        super().bind(student, teacher)
        shapes = [(other, own) for own, other in pair_widths(self.pairs, student, teacher)]
        if [tuple(projection.shape) for projection in self.projections] != shapes:
            self.projections = nn.ParameterList(nn.init.xavier_uniform_(torch.empty(shape)) for shape in shapes)
            self.running, self.left = torch.zeros(len(shapes)), torch.ones(len(shapes), dtype=torch.bool)
            self._known = None

    @property
    def remaining(self) -> tuple[tuple[int, int], ...]:
        """The (student layer, teacher layer) candidates that are left."""
        return tuple(pair for pair, left in zip(self.pairs, self.left.tolist(), strict=True) if left)

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """Mean over the candidates that are left."""
        learning = self.training and torch.is_grad_enabled()  # evaluation selects nothing
        chosen = self._chosen(self._wanted(batch.progress), learning)
        losses = torch.stack([self._candidate(number, student, teacher, batch) for number in chosen])
        if learning:
            self._note(losses.detach(), self.count(batch))
        return losses.mean()

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """One candidate, the teacher's states projected already."""
        return projected_mse(student, teacher, mask)

    def _candidate(self, number: int, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The loss of one candidate."""
        (ours, theirs), projection = self.pairs[number], self.projections[number]
        states = student.hidden_states[ours], teacher.hidden_states[theirs].detach()
        state, target, mask = self.aligned(number, *states, batch.mask)
        if mask is not None:  # what is multiplied with P must hold no NaN: its gradient would
            target = target.masked_fill(~mask.bool()[..., None], 0)
        return self.compare(state, target.to(projection.dtype) @ projection, mask)

    def _wanted(self, progress: float) -> int:
        """How many candidates there are, by progress alone: every process and a resumed run agree on it."""
        counts = [len(self.pairs)]
        while counts[-1] > 1:
            counts.append(counts[-1] - max(1, int(counts[-1] * self.dropped)))
        rounds = len(counts) - 1
        done = rounds if progress >= self.selection else int(progress / self.selection * rounds)
        return counts[done]

    def _chosen(self, wanted: int, learning: bool) -> list[int]:
        """Numbers of the best candidates; the host waits for them only where one is dropped, and in evaluation."""
        if learning and self._known is not None and len(self._known) == wanted:
            return self._known
        best_first = self.running.masked_fill(~self.left, torch.inf).argsort(stable=True)[:wanted].tolist()
        left = self.left.tolist()
        chosen = [number for number in best_first if left[number]]
        if learning:
            self._known, self._places = chosen, torch.tensor(chosen, device=self.left.device)
            self.left &= torch.zeros_like(self.left).index_fill(0, self._places, True)
        return chosen

    def _note(self, losses: Tensor, count: Tensor) -> None:
        """Move the running means of what is left towards these losses, averaged over the tokens of all processes."""
        count = count.to(losses)
        total = torch.cat([losses * count, count[None]]).to(self.running)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(total)
        before = self.running[self._places]
        after = before.lerp(total[:-1] / total[-1], 1 - self.momentum)
        # neither one overflow nor a batch without a token (0 / 0) may decide for good
        self.running[self._places] = after.where(after.isfinite(), before)


def _thirds(depth: int) -> list[int]:
    """The layers at one third, two thirds and the whole of a depth, each once."""
    return sorted({-(-depth * third // 3) for third in (1, 2, 3)})


def _forget(loss: KnowledgeProjectionLoss, _: object) -> None:
    """What is left was read from a checkpoint."""
    loss._known = None
