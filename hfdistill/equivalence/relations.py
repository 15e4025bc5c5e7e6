"""Which terms of an objective see a micro-batch as a whole: cut in another way it is another loss, by definition."""

from __future__ import annotations

from hfdistill.losses import (
    AdjustedTargetLoss,
    AttendedLayerLoss,
    ChannelMatchingLoss,
    DistillationLoss,
    PrimeAwareLoss,
    TaskOrientedLoss,
)
from hfdistill.losses.bilevel import is_learning
from hfdistill.objective import Objective


def relating(objective: Objective) -> frozenset[str]:
    """Names of the terms whose value, or learning, is no mean over the rows or tokens of a batch. Bound already."""
    return frozenset(name for name in objective if relates_rows(objective[name]))


def gathering(objective: Objective) -> frozenset[str]:
    """Names of the terms that see the rows of all processes as one micro-batch."""
    return frozenset(name for name in objective if any(part.gather for part in _parts(objective[name])))


def remembering(objective: Objective) -> frozenset[str]:
    """Names of the terms that go from one micro-batch to the next with what they saw: how they are cut decides it."""
    return frozenset(
        name
        for name in objective
        if objective[name].indexed or is_learning(objective[name]) or isinstance(objective[name], ChannelMatchingLoss)
    )


def relates_rows(loss: DistillationLoss) -> bool:
    """Whether a loss depends on which rows share a batch; losses of one's own count where they say so.

    They say so by an attribute `gather` of their own, by `fewest_rows`, or by `indexed`.
    """
    if is_learning(loss) or loss.indexed or any(part.fewest_rows > 1 for part in _parts(loss)):
        return True
    if any("gather" in vars(part) for part in _parts(loss)):
        return True
    by_choice = (isinstance(loss, AdjustedTargetLoss) and loss.dynamic is not None) or (
        isinstance(loss, AttendedLayerLoss | PrimeAwareLoss) and _norm(loss) == "batch"
    )
    return by_choice or isinstance(loss, ChannelMatchingLoss | TaskOrientedLoss)


def _norm(loss: AttendedLayerLoss | PrimeAwareLoss) -> str:
    return loss.norm if isinstance(loss, AttendedLayerLoss) else loss.normalization


def _parts(loss: DistillationLoss) -> list[DistillationLoss]:
    return [part for part in loss.modules() if isinstance(part, DistillationLoss)]
