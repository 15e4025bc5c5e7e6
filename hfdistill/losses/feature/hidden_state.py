"""Hidden states, layer by layer (FitNets' hints, TinyBERT's and DistilBERT's hidden losses)."""

from __future__ import annotations

from torch import Tensor

from hfdistill import functional
from hfdistill.losses.base import choose
from hfdistill.losses.layerwise import Layers, LayerwiseLoss
from hfdistill.losses.method import Method, Paper
from hfdistill.losses.papers import TINYBERT
from hfdistill.schedules import Schedule


class HiddenStateLoss(LayerwiseLoss):
    """Match the teacher's token states at mapped layers.

    metric="mse": L = sum over pairs (s, t) of mean_tokens mean_D (W h_s - h_t)^2; metric="cosine": the sum over pairs
    of mean_tokens (1 - cos(W h_s, h_t)). Only real tokens count. W is the identity where the widths agree.

    Romero et al. 2015, FitNets, https://arxiv.org/abs/1412.6550, equation 3 (without the factor 1/2, averaged); Jiao
    et al. 2020, TinyBERT, https://arxiv.org/abs/1909.10351, equations 8 and 9 (hidden and embedding loss, one W);
    Sanh et al. 2019, DistilBERT, https://arxiv.org/abs/1910.01108, section 2 (cosine).

    Shapes: hidden states (B, N, D_student) and (B, N, D_teacher); of image models with other patches or special tokens
    those that both have, the larger grid average-pooled.

    Args:
        layers: which student layer learns from which teacher layer; 0 is the embedding output, which "uniform"
            includes.
        metric: "mse" or "cosine".
        embeddings: False leaves pairs with the embedding output out of the map.
        shared_projector: one W for all pairs of layers of the same widths, as TinyBERT has, instead of one per pair.
        weight: see DistillationLoss.

    Raises:
        ValueError: an unknown metric; a layer map that does not fit the two depths.
    """

    method = Method(
        papers=(
            Paper("Romero et al.", 2015, "FitNets: Hints for Thin Deep Nets", "https://arxiv.org/abs/1412.6550"),
            TINYBERT,
            Paper(
                "Sanh et al.",
                2019,
                "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
                "https://arxiv.org/abs/1910.01108",
            ),
        ),
        evidence=(
            "hand/hint",
            "hint/plain",
            "hint/masked",
            "hint/projected",
            "hand/cos_orth",
            "hidden_cos/masked",
        ),
        restrictions=(
            "the same tokens on both sides, or two image models",
            "a student deeper than its teacher needs explicit pairs of layers, unless the teacher has stages",
        ),
    )

    def __init__(
        self,
        layers: Layers = "uniform",
        metric: str = "mse",
        embeddings: bool = True,
        shared_projector: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, shared_projector, weight)
        self.metric = choose("metric", metric, ("mse", "cosine"))
        if not embeddings:
            self.layers = self.layers.without_embeddings()

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """Mean over real tokens of the squared or the angular difference."""
        if self.metric == "mse":
            return functional.hidden_mse(student, teacher, mask)
        return functional.hidden_cosine(student, teacher, mask)
