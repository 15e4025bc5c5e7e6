"""Soft targets: the student learns the teacher's distribution over the classes (Hinton et al. 2015)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from hfdistill import functional
from hfdistill.anatomy import Anatomy
from hfdistill.losses.base import DistillationLoss, choose
from hfdistill.representations import IGNORE_INDEX, Batch, Needs, Representations
from hfdistill.schedules import Schedule, as_schedule

_DIVERGENCES = ("kl", "cross_entropy", "mse")
_TOKEN_HEADS = ("ForTokenClassification", "ForMaskedLM", "ForCausalLM")


class SoftTargetLoss(DistillationLoss):
    """Match the teacher's softened class distribution.

    L = T^2 mean_rows KL(softmax(teacher / T) || softmax(student / T)); with a single output (regression), the mean
    squared difference of the two outputs. Token-level logits (B, N, K) are averaged over labelled tokens, or over real
    ones where there are no labels; rows and tokens labelled -100 do not count. A position of a causal model counts
    where the token after it is labelled.

    Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531,
    section 2; `divergence="mse"`: Ba and Caruana 2014, Do Deep Nets Really Need to be Deep?, equation 1.

    Shapes: logits (B, K) or (B, N, K), the same on both sides.

    Args:
        temperature: T > 0, or a Schedule; the paper tried 1 to 20.
        divergence: "kl"; "cross_entropy" (same gradient, not zero at equality); "mse" of the logits divided by T.
        reduction: "mean" over rows; "elementmean" divides by the number of classes too, as the reference codes of PKD
            and TinyBERT do.
        scale_by_temperature: multiply by T^2, which keeps gradients comparable across temperatures; "mse" never is.
        weight: see DistillationLoss.

    Raises:
        ValueError: T <= 0, an unknown divergence or reduction, different numbers of classes or shapes.
        TypeError: `temperature` is neither a number nor a Schedule.
    """

    def __init__(
        self,
        temperature: float | Schedule = 4.0,
        divergence: str = "kl",
        reduction: str = "mean",
        scale_by_temperature: bool = True,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(weight)
        self.temperature = as_schedule(temperature)
        if not isinstance(temperature, Schedule) and not temperature > 0:
            raise ValueError(
                f"temperature must be above 0, got {temperature}: logits are divided by it. Use 1 for the plain "
                "distribution, 2 to 20 for softer ones."
            )
        self.divergence = choose("divergence", divergence, _DIVERGENCES)
        self.reduction = choose("reduction", reduction, ("mean", "elementmean"))
        self.scale_by_temperature = scale_by_temperature
        self.token_level = False
        self.causal = False

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Refuse heads of different size."""
        if student.classes != teacher.classes:
            raise ValueError(
                f"SoftTargetLoss needs the same number of classes on both sides, got {student.classes} (student) and "
                f"{teacher.classes} (teacher). A divergence between different label sets is undefined. Load the "
                f"student with num_labels={teacher.classes}, or choose the teacher's classes with "
                "FrozenTeacher(teacher, label_map=[...])."
            )
        self.token_level = student.head in _TOKEN_HEADS
        self.causal = student.head == "ForCausalLM"

    def needs(self) -> tuple[Needs, Needs]:
        """Both models' logits."""
        return Needs(logits=True), Needs(logits=True)

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The divergence of the student's logits from the teacher's."""
        ours, theirs = student.logits, teacher.logits
        if ours is None or theirs is None:
            raise ValueError(
                f"SoftTargetLoss needs logits of both models, but the {'student' if ours is None else 'teacher'} gave "
                "none. A model without a head has no answers to match; load it with its task head."
            )
        if ours.shape != theirs.shape:
            raise ValueError(
                f"SoftTargetLoss needs logits of one shape, got {tuple(ours.shape)} (student) and "
                f"{tuple(theirs.shape)} (teacher). Rows and classes are compared one to one; give both models the "
                "same batch and heads of the same kind."
            )
        mask = self._mask(ours, batch)
        temperature = self.temperature(batch.progress)
        if ours.shape[-1] == 1 or self.divergence == "mse":
            return functional.logit_mse(ours, theirs, 1.0 if ours.shape[-1] == 1 else temperature, mask)
        divergence = functional.soft_target_kl if self.divergence == "kl" else functional.soft_target_cross_entropy
        return divergence(ours, theirs, temperature, mask, self.reduction, self.scale_by_temperature)

    def count(self, batch: Batch) -> Tensor:
        """Rows, or tokens, that are not ignored."""
        if batch.labels is None and self.token_level:
            return batch.token_count()
        predicted = self._predicted(batch)
        return batch.label_count() if predicted is None else predicted.sum().float()

    def _mask(self, logits: Tensor, batch: Batch) -> Tensor | None:
        labels = batch.labels
        if labels is not None and not labels.is_floating_point() and labels.shape == logits.shape[:-1]:
            predicted = self._predicted(batch)
            return labels != IGNORE_INDEX if predicted is None else predicted
        return batch.mask if logits.dim() == 3 else None

    def _predicted(self, batch: Batch) -> Tensor | None:
        """(B, N), positions of a causal model whose next token is labelled; None for other models."""
        if not self.causal or batch.labels is None:
            return None
        return F.pad(batch.labels[:, 1:] != IGNORE_INDEX, (0, 1), value=False)  # the last position predicts nothing
