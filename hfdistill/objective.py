"""The objective: named losses, weighted and summed.

total = sum over names of weight(progress) * scale * value. `scale` makes micro-batches and processes count by their
number of valid items, so that neither gradient accumulation nor the number of processes changes the loss. A loss whose
weight is 0 at this point of training is neither computed nor captured for.

A student with one head for the labels and one for the teacher (DeiT) learns each with its own head while both kinds of
loss run, and with its answer, the mean of both, while one kind runs alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy
from hfdistill.losses.base import DistillationLoss
from hfdistill.losses.bilevel import BilevelLoss, is_learning
from hfdistill.names import check_term_name
from hfdistill.representations import Batch, Needs, Representations


class ObjectiveResult(NamedTuple):
    """One evaluation of an objective.

    Attributes:
        loss: the weighted sum, with a gradient.
        terms: name -> unweighted value, detached, on the device.
    """

    loss: Tensor
    terms: dict[str, Tensor]


class Objective(nn.Module):
    """A named, weighted sum of losses.

    ::

        Objective(task=TaskLoss(weight=0.1), kd=SoftTargetLoss(temperature=4.0, weight=0.9))

    Args:
        losses: name -> loss; the names appear in the log as `loss/<name>`.

    Attributes:
        preset: name of the preset that built it, for the record of a run; "" where none did.

    Raises:
        ValueError: no loss at all; a name that cannot be logged and saved; one loss under two names.
        TypeError: something in it is not a DistillationLoss.
    """

    def __init__(self, **losses: DistillationLoss) -> None:
        super().__init__()
        if not losses:
            raise ValueError(
                "an Objective needs at least one loss, got none: there would be nothing to train on. Write "
                "Objective(task=TaskLoss(), kd=SoftTargetLoss()), or use a preset's name."
            )
        for name, loss in losses.items():
            if not isinstance(loss, DistillationLoss):
                raise TypeError(
                    f"the loss {name!r} must be a DistillationLoss, got {type(loss).__name__}. The objective asks it "
                    "what it needs to see; subclass DistillationLoss or LayerwiseLoss."
                )
            check_term_name(name)
            if any(other is loss for key, other in losses.items() if key != name):
                raise ValueError(
                    f"the loss {name!r} is in the objective twice, as one object under two names: its parts could not "
                    "be saved, and both would have one weight. Make two losses, or give one a larger weight."
                )
        if taken := sorted(losses.keys() & set(dir(nn.ModuleDict))):
            raise ValueError(f"no term can be called {taken[0]!r}, which torch's ModuleDict uses itself. Rename it.")
        self.losses = nn.ModuleDict(losses)
        self.preset = ""

    def __getitem__(self, name: str) -> DistillationLoss:
        """The loss of this name."""
        return self._named()[name]

    def __iter__(self) -> Iterator[str]:
        """The names, in the order they were given."""
        return iter(self.losses.keys())

    def __repr__(self) -> str:
        terms = ", ".join(f"{name}={type(loss).__name__}" for name, loss in self._named().items())
        return f"Objective({terms})"

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Tell every loss the sizes of the two models; see DistillationLoss.bind.

        Raises:
            ValueError: a loss cannot compare them; the message names the loss.
        """
        for name, loss in self._named().items():
            try:
                loss.bind(student, teacher)
            except ValueError as error:
                raise ValueError(f"objective term {name!r}: {error}") from error

    def active(self, progress: float) -> dict[str, DistillationLoss]:
        """The losses whose weight is not 0 at this point of training, 0 to 1."""
        return {name: loss for name, loss in self._named().items() if loss.weight(progress) != 0.0}

    def bind_data(self, rows: int, labels: Tensor | None) -> None:
        """Tell the losses that keep something per training row how many there are; see DistillationLoss.bind_data."""
        for loss in self._named().values():
            if loss.indexed:
                loss.bind_data(rows, labels)

    @property
    def indexed(self) -> bool:
        """Whether a loss keeps something for each training row."""
        return any(loss.indexed for loss in self._named().values())

    @property
    def same_tokens(self) -> bool:
        """Whether a loss that learns from the teacher needs it to read the student's tokens. Called after `bind`."""
        return any(loss.same_tokens and bool(loss.needs()[1]) for loss in self._named().values())

    def bilevel(self, progress: float) -> list[BilevelLoss]:
        """The active losses with meta networks that learn now; see BilevelLoss."""
        losses = self.active(progress).values()
        return [loss for loss in losses if isinstance(loss, BilevelLoss) and is_learning(loss)]

    @property
    def staged(self) -> bool:
        """Whether a loss teaches in stages, with a part of the student frozen in each."""
        kinds = (type(loss).trained_depths for loss in self._named().values())
        return any(function is not DistillationLoss.trained_depths for function in kinds)

    def trained_depths(self, progress: float) -> frozenset[int] | None:
        """The student's depths that all losses let learn at this progress; None: all. Called after `bind`."""
        allowed = [loss.trained_depths(progress) for loss in self._named().values()]
        sets = [depths for depths in allowed if depths is not None]
        return frozenset.intersection(*sets) if sets else None

    def needs(self, progress: float | None = None) -> tuple[Needs, Needs]:
        """What must be seen of student and teacher now; None: at any time of training."""
        losses = self._named() if progress is None else self.active(progress)
        asked = [loss.needs() for loss in losses.values()]
        return Needs.union(ours for ours, _ in asked), Needs.union(theirs for _, theirs in asked)

    def cached_needs(self) -> Needs:
        """What a cache must keep of the teacher for the whole of training; see DistillationLoss.cached_needs."""
        return Needs.union(loss.cached_needs() for loss in self._named().values()).without_repetition()

    def weights(self, progress: float) -> dict[str, float]:
        """Name -> weight at this point of training."""
        return {name: loss.weight(progress) for name, loss in self._named().items()}

    def counts(self, batches: Iterable[Batch]) -> Tensor:
        """Valid items of each loss in all of `batches`, (number of losses,), in the order of the names."""
        rows = [torch.stack([loss.count(batch) for loss in self._named().values()]) for batch in batches]
        return torch.stack(rows).sum(dim=0)

    def forward(
        self, student: Representations, teacher: Representations, batch: Batch, scales: Tensor | None = None
    ) -> ObjectiveResult:
        """The weighted sum, and each value for the log.

        Args:
            student: what the student's forward pass showed.
            teacher: what the teacher's showed; no gradient flows into it.
            batch: what both were given.
            scales: (number of losses,), factor of each value before it is weighted and reported; None: 1.
        """
        terms: dict[str, Tensor] = {}
        total: Tensor | None = None
        names, weights = list(self.losses.keys()), self.weights(batch.progress)
        for name, value in self.values(student, teacher, batch).items():
            if scales is not None:
                value = value * scales[names.index(name)].to(value)
            terms[name] = value.detach()
            weighted = weights[name] * value
            total = weighted if total is None else total + weighted
        if total is None:
            raise ValueError(
                f"every loss of {self!r} has the weight 0 at progress {batch.progress:.3f}, so there is nothing to "
                "train on. Give one of them a weight above 0 for this part of training."
            )
        return ObjectiveResult(total, terms)

    def values(self, student: Representations, teacher: Representations, batch: Batch) -> dict[str, Tensor]:
        """Name -> unweighted value, with its gradient, of each loss that is active now; see `forward`."""
        active = self.active(batch.progress)
        student = _answering(student, active.values())
        return {name: loss(student, teacher, batch) for name, loss in active.items()}

    def _named(self) -> dict[str, DistillationLoss]:
        return {name: loss for name, loss in self.losses.items() if isinstance(loss, DistillationLoss)}


def _answering(student: Representations, losses: Iterable[DistillationLoss]) -> Representations:
    """What a student with a head for labels and one for the teacher (DeiT) is to learn with.

    Its answer is the mean of both. Where only labels, or only the teacher, are learnt now, that mean is: the other
    head would stay as it was, and spoil the answer.
    """
    kinds = {loss.labels_alone for loss in losses if loss.needs()[0].logits}
    return student if len(kinds) == 2 else student.with_one_answer()
