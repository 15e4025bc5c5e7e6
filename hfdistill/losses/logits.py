"""Losses that compare the two models' answers: classes of rows, of tokens, or of next tokens."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from hfdistill.anatomy import Anatomy
from hfdistill.losses.base import DistillationLoss
from hfdistill.representations import IGNORE_INDEX, Batch, Needs, Representations
from hfdistill.schedules import Schedule, as_schedule

TOKEN_HEADS = ("ForTokenClassification", "ForMaskedLM", "ForCausalLM")
"""Heads that answer for each token, (B, N, K), as transformers names them."""


@dataclass(frozen=True)
class Targets:
    """What the logits of a batch are compared under.

    Args:
        mask: True where logits count, of their shape without the classes, (B,) or (B, N); None: everywhere.
        labels: class of each row or token, of the same shape (for causal models that of the next token), -100 where it
            is not known; None where there are no class labels.
        progress: share of training done, 0 to 1.
    """

    mask: Tensor | None
    labels: Tensor | None
    progress: float


class LogitLoss(DistillationLoss):
    """Compares logits; subclass it and write `compare`.

    What counts, the alignment of labels with logits (a causal model's logits answer for the next token) and the checks
    of both heads are inherited. A student with a head for its teacher alone (DeiT) is compared by that head, a teacher
    by its answer. Three class variables say what the comparison needs: `fewest_classes`, `labelled` (it
    reads the labels) and `same_classes` (False: the two sides may have different ones).

    Args:
        weight: see DistillationLoss.
    """

    fewest_classes: ClassVar[int] = 2
    labelled: ClassVar[bool] = False
    same_classes: ClassVar[bool] = True

    def __init__(self, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        self.token_level = False
        self.causal = False

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Refuse heads that cannot be compared."""
        name = type(self).__name__
        if self.same_classes and student.classes != teacher.classes:
            raise ValueError(
                f"{name} needs the same number of classes on both sides, got {student.classes} (student) and "
                f"{teacher.classes} (teacher). A divergence between different label sets is undefined. Load the "
                f"student with num_labels={teacher.classes}, or choose the teacher's classes with "
                "FrozenTeacher(teacher, label_map=[...])."
            )
        self.token_level = student.head in TOKEN_HEADS
        self.causal = student.head == "ForCausalLM"
        language_model = self.token_level and student.head != "ForTokenClassification"
        if 0 < student.classes < self.fewest_classes and not language_model:  # there num_labels means nothing
            raise ValueError(
                f"{name} needs at least {self.fewest_classes} classes, got {student.classes}: with fewer its terms "
                "are constant and teach nothing. Use SoftTargetLoss, which is defined for any number (a single "
                "output is compared by its square)."
            )

    @property
    def exclusive(self) -> bool:
        """Whether one class of a row is taken to be right, as a softmax does; of several labels that is not true."""
        return True

    @property
    def reads_classes(self) -> bool:
        """What `labelled` says."""
        return self.labelled

    def needs(self) -> tuple[Needs, Needs]:
        """Both models' logits."""
        return Needs(logits=True), Needs(logits=True)

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The student's logits against the teacher's."""
        name, ours, theirs = type(self).__name__, student.taught_logits, teacher.logits
        if ours is None or theirs is None:
            raise ValueError(
                f"{name} needs logits of both models, but the {'student' if ours is None else 'teacher'} gave none. A "
                "model without a head has no answers to match; load it with its task head."
            )
        if self.same_classes and ours.shape != theirs.shape:
            raise ValueError(
                f"{name} needs logits of one shape, got {tuple(ours.shape)} (student) and {tuple(theirs.shape)} "
                "(teacher). Rows and classes are compared one to one; give both models the same batch and heads of "
                "the same kind."
            )
        labels = self._labels(ours, batch)
        if self.labelled and labels is None:
            raise ValueError(
                f"{name} reads the class labels, got {'none' if batch.labels is None else 'labels of another kind'} "
                "in the batch. Its targets depend on them; add labels to the data set, or use SoftTargetLoss, which "
                "needs none."
            )
        mask = labels != IGNORE_INDEX if labels is not None else batch.mask if ours.dim() == 3 else None
        return self.compare(ours, theirs, Targets(mask, labels, batch.progress))

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor, targets: Targets) -> Tensor:
        """The loss of logits (B, K) or (B, N, K); see Targets for what counts."""

    def count(self, batch: Batch) -> Tensor:
        """Rows, or tokens, that are not ignored."""
        if batch.labels is None and self.token_level:
            return batch.token_count()
        if self.causal and batch.labels is not None:
            return (next_labels(batch.labels, batch.mask) != IGNORE_INDEX).sum().float()
        return batch.label_count()

    def _labels(self, logits: Tensor, batch: Batch) -> Tensor | None:
        """Class labels of the logits' shape without K, or None."""
        labels = batch.labels
        if labels is None or labels.is_floating_point() or labels.shape != logits.shape[:-1]:
            return None
        return next_labels(labels, batch.mask) if self.causal else labels


class SoftenedLogitLoss(LogitLoss):
    """A LogitLoss with a temperature; subclass it and write `compare`.

    Args:
        temperature: T > 0, or a Schedule.
        weight: see DistillationLoss.

    Raises:
        ValueError: T <= 0.
        TypeError: `temperature` is neither a number nor a Schedule.
    """

    def __init__(self, temperature: float | Schedule = 1.0, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        self.temperature = as_schedule(temperature)
        if not isinstance(temperature, Schedule) and not temperature > 0:
            raise ValueError(
                f"temperature must be above 0, got {temperature}: logits are divided by it. Use 1 for the plain "
                "distribution, 2 to 20 for softer ones."
            )


def next_labels(labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Labels (B, N) of the token after each; the last position predicts nothing, nor does padding on the left.

    Args:
        labels: (B, N) of each token.
        mask: (B, N), 1 = real token, or None.
    """
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    return shifted if mask is None else shifted.masked_fill(~mask.bool(), IGNORE_INDEX)
