"""Mixed images: mixup, which blends two images, and CutMix, which pastes a piece of one into the other.

A batch is mixed once, on its device, after the data collator, so that student and teacher see the same images. This
module draws who is mixed with whom, and how much; `MixedBatch` mixes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Beta

from hfdistill.mixup import Mix


@dataclass(frozen=True)
class ImageMixing:
    """How the images of a batch are mixed, each with another of the batch drawn at random.

    mixup: x̃ = λ x + (1 - λ) x', λ ~ Beta(α, α), one for the batch. CutMix: a rectangle of x' of (1 - λ) of the area,
    its sides in the image's proportions and its centre anywhere, takes its place in x; it is cut off at the border,
    and λ becomes the share of x that is left. Labels: λ CE(y) + (1 - λ) CE(y').

    Zhang et al. 2018, mixup: Beyond empirical risk minimization, https://arxiv.org/abs/1710.09412; Yun et al. 2019,
    CutMix: Regularization strategy to train strong classifiers with localizable features,
    https://arxiv.org/abs/1905.04899. Drawn from torch's generator on the CPU, which checkpoints hold.

    Args:
        mixup_alpha: α of mixup; 0 is off. DeiT takes 0.8.
        cutmix_alpha: α of CutMix; 0 is off. DeiT takes 1.
        probability: of a batch to be mixed, in (0, 1].
        switch: where both are on, probability of CutMix, 0 to 1.

    Raises:
        ValueError: an α below 0 or both 0, a probability that is none.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    probability: float = 1.0
    switch: float = 0.5

    def __post_init__(self) -> None:
        if min(self.mixup_alpha, self.cutmix_alpha) < 0 or self.mixup_alpha + self.cutmix_alpha == 0:
            raise ValueError(
                f"expected mixup_alpha and cutmix_alpha of 0 (off) or above, and one of them above 0, got "
                f"{self.mixup_alpha} and {self.cutmix_alpha}: Beta(alpha, alpha) is where the share of each image "
                "comes from. Usual are 0.2 to 0.8 for mixup, 1 for CutMix."
            )
        if not 0 < self.probability <= 1 or not 0 <= self.switch <= 1:
            raise ValueError(
                f"expected a probability of mixing in (0, 1] and a switch in [0, 1], got {self.probability} and "
                f"{self.switch}. Leave them at 1 and 0.5."
            )

    def draw(self, pixels: Tensor) -> Mix | None:
        """Who is mixed with whom, and how much; None for a batch that is left as it is.

        Args:
            pixels: (B, C, H, W), of which the shape and the device are read.

        Raises:
            ValueError: of another shape.
        """
        if pixels.dim() != 4:
            raise ValueError(
                f"expected pixel_values (B, C, H, W), got {tuple(pixels.shape)}. Images are mixed in pairs of one "
                "size; let the data collator stack them."
            )
        if float(torch.rand(())) >= self.probability:
            return None
        rows, height, width = pixels.shape[0], pixels.shape[2], pixels.shape[3]
        cut = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or float(torch.rand(())) < self.switch)
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        share = 1 - float(Beta(alpha, alpha).sample())
        box = _box(share, height, width) if cut else None
        if box is not None:
            share = (box[1] - box[0]) * (box[3] - box[2]) / (height * width)
        return Mix(
            rows,
            torch.arange(rows, device=pixels.device),
            torch.randperm(rows).to(pixels.device),
            torch.full((rows,), share, device=pixels.device),
            None if box is None else (box[0] / height, box[1] / height, box[2] / width, box[3] / width),
        )


def _box(share: float, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a rectangle of `share` of the area, as far as it is inside the image."""
    edges = []
    for length in (height, width):
        side, centre = int(length * math.sqrt(share)), int(torch.randint(length, ()))
        edges += [max(0, centre - side // 2), min(length, centre + (side + 1) // 2)]
    return edges[0], edges[1], edges[2], edges[3]
