"""Losses with parts that learn one level up: not to make the loss small, but to make what it teaches useful."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from hfdistill.losses.layerwise import LayerwiseLoss
from hfdistill.representations import Batch, Representations


def is_learning(loss: object) -> bool:
    """Whether this is a loss with meta networks that learn."""
    return isinstance(loss, BilevelLoss) and loss.virtual_steps > 0


class BilevelLoss(LayerwiseLoss):
    """A loss over pairs of layers with meta networks; subclass it and write `matching` and `meta_networks`.

    The student descends on the loss with the meta networks held fixed; these learn from the task loss of a student
    that took virtual steps on it (see `hfdistill.meta_gradient`). Outside DistillationTrainer they stay as they began.
    """

    virtual_steps: int
    """Steps that the virtual student takes on the loss; 0 leaves the meta networks as they began."""

    @abstractmethod
    def meta_networks(self) -> nn.Module:
        """The part that learns one level up."""

    @abstractmethod
    def matching(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The loss, with a gradient to the meta networks too."""

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The loss as the student sees it: the meta networks are fixed."""
        asked = [parameter.requires_grad for parameter in self.meta_networks().parameters()]
        self.meta_networks().requires_grad_(False)
        try:
            return self.matching(student, teacher, batch)
        finally:
            for parameter, wanted in zip(self.meta_networks().parameters(), asked, strict=True):
                parameter.requires_grad_(wanted)
