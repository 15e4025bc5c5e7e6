"""A teacher's most likely classes: what is left of it where its logits were cut to be stored."""

from __future__ import annotations

from torch import Tensor

from hfdistill.functional.divergences import top_k_kl
from hfdistill.losses.base import choose
from hfdistill.losses.logits import SoftenedLogitLoss, Targets
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import Needs
from hfdistill.schedules import Constant, Schedule


class TopKLoss(SoftenedLogitLoss):
    """Match the teacher's distribution over its k most likely classes.

    missing="tail": L = mean_rows KL(p_t || p_s) over these k classes and one more for all others together;
    missing="zero": L = mean_rows sum_top q (log q - log p_s), q = p_t / sum_top p_t. p = softmax(logits / T), without
    T^2. "zero" takes the other classes for impossible: it is above 0 where the student equals the teacher, and falls
    until the student gives them nothing. Where k reaches the number of classes both are the forward KL. Rows and
    tokens labelled -100 do not count, nor does padding where there are no labels; a position of a causal model counts
    where the token after it is labelled.

    DistillKit (Arcee AI), https://github.com/arcee-ai/DistillKit, "zero" and "symmetric_uniform", which it multiplies
    by T^2 and whose tail it leaves out below 1e-6; no paper is known to define them.

    Shapes: logits (B, K) or (B, N, K), the same on both sides, K >= 2; the teacher's may be -inf outside its k
    classes.

    Args:
        k: number of classes of each row that the teacher tells about; 128 is ours.
        missing: what the other classes get, "tail" or "zero".
        temperature: T > 0, or a Schedule.
        scale_by_temperature: multiply by T^2, which keeps gradients comparable across temperatures.
        weight: see DistillationLoss.

    Raises:
        ValueError: k < 1, an unknown word for `missing`, T <= 0, different numbers of classes or shapes, a single
            class.
        TypeError: `temperature` is neither a number nor a Schedule.
    """

    method = Method(
        papers=(Paper("Arcee AI", 2025, "DistillKit", "https://github.com/arcee-ai/DistillKit"),),
        evidence=("topk_kl/zero", "topk_kl/tail"),
        restrictions=("same classes on both sides",),
        unverified="no paper defines it, and the default k is ours",
    )

    def __init__(
        self,
        k: int = 128,
        missing: str = "tail",
        temperature: float | Schedule = 1.0,
        scale_by_temperature: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(temperature, weight)
        if k < 1:
            raise ValueError(
                f"k must be at least 1, got {k}: it is the number of classes that are compared. Use the number that "
                "was stored of the teacher, 64 to 1000 for a vocabulary."
            )
        self.k = k
        self.missing = choose("missing", missing, ("tail", "zero"))
        self.scale_by_temperature = scale_by_temperature

    def cached_needs(self) -> Needs:
        """The k classes and the mass of all others; the logits where the temperature changes in training."""
        if not isinstance(self.temperature, Constant):
            return super().cached_needs()
        return Needs(top_classes=frozenset({(self.k, self.temperature(0.0))}))

    def compare(self, student: Tensor, teacher: Tensor, targets: Targets) -> Tensor:
        """The divergence over the teacher's top classes."""
        temperature = self.temperature(targets.progress)
        value = top_k_kl(student, teacher, self.k, temperature, targets.mask, self.missing)
        return value * temperature**2 if self.scale_by_temperature else value
