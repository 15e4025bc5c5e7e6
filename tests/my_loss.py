"""A loss of one's own, as a user writes it: one file, one method, nothing registered anywhere."""

from torch import Tensor

from hfdistill import LayerwiseLoss, Schedule
from hfdistill.losses.layerwise import Layers


class MyLoss(LayerwiseLoss):
    """Mean absolute difference of the hidden states of real tokens, times `scale`."""

    def __init__(self, layers: Layers = "uniform", scale: float = 1.0, weight: float | Schedule = 1.0) -> None:
        super().__init__(layers, weight=weight)
        self.scale = scale

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        difference = (student - teacher).abs().mean(dim=-1)  # (B, N)
        if mask is None:
            return self.scale * difference.mean()
        return self.scale * (difference * mask).sum() / mask.sum().clamp(min=1)
