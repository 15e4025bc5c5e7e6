"""Answers of two models whose vocabularies, or even tokens, differ."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hfdistill.anatomy import Anatomy
from hfdistill.functional.divergences import universal_logit
from hfdistill.losses.base import DistillationLoss
from hfdistill.losses.logits import next_labels
from hfdistill.losses.method import Method, Paper
from hfdistill.representations import IGNORE_INDEX, Batch, Needs, Representations
from hfdistill.schedules import Schedule, as_schedule

_CAUSAL = "ForCausalLM"
_SINGLE_OUTPUT = ("ForSequenceClassification", "ForImageClassification", "ForTokenClassification")
Positions = tuple[Tensor | None, Tensor | None]


class UniversalLogitLoss(DistillationLoss):
    """Match the sorted probabilities of two models that need not share a vocabulary, classes or a tokenizer.

    L = mean_rows 1/n sum_{i < n} sum_v |p_student - p_teacher|, both softmax(logits / T) of the i-th position that
    counts, sorted from the largest, the shorter vocabulary filled up with 0; n is the smaller number of such positions
    of the two. In [0, 2], without T^2. Which token a probability belongs to is lost: learn the labels beside it.

    What counts: of a causal model the real positions whose next token is labelled, so an answer begins at the position
    that predicts its first token; where a row has no leading -100, that is the first position, which answers for the
    second token. Of other token heads the labelled positions themselves (words, where only the first piece of each is
    labelled; masked tokens correspond only where both models' texts are masked at the same words). Without labels all
    real positions. Of logits (B, K) every row is one position, unless it is labelled -100.

    A teacher that reads tokens of its own needs `teacher_labels` and `teacher_mask` in the batch (columns
    teacher_input_ids, teacher_attention_mask, teacher_labels); without them both sides share labels and mask.

    Boizard, El Haddad, Hudelot and Colombo 2024, Towards Cross-Tokenizer Distillation: the Universal Logit
    Distillation Loss for LLMs, https://arxiv.org/abs/2402.12030. The authors' code takes the position of the first
    label itself, not the one before it, where a row has no leading -100.

    Shapes: logits (B, N_student, V_student) and (B, N_teacher, V_teacher), or (B, K_student) and (B, K_teacher).

    Args:
        temperature: T > 0 of both sides, or a Schedule.
        top: sort only so many probabilities, and take the rest as one more (a value never above the exact one): 100
            to 1000 saves most of the cost for a vocabulary; None sorts all.
        teacher_temperature: T of the teacher where it has its own.
        weight: see DistillationLoss; the authors' code takes 1.5 beside the labels.

    Raises:
        ValueError: T <= 0, top < 1, a single output, heads of different kinds, labels of one side only.
        TypeError: a temperature is neither a number nor a Schedule.
    """

    method = Method(
        papers=(
            Paper(
                "Boizard et al.",
                2024,
                "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
                "https://arxiv.org/abs/2402.12030",
            ),
        ),
        evidence=("uld/v5_v8",),
        restrictions=(
            "probabilities are matched by rank, not by token",
            "positions are matched by order, not by text",
        ),
    )

    same_tokens: ClassVar[bool] = False

    def __init__(
        self,
        temperature: float | Schedule = 1.0,
        top: int | None = None,
        teacher_temperature: float | Schedule | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(weight)
        self.temperature = as_schedule(temperature)
        self.teacher_temperature = (
            self.temperature if teacher_temperature is None else as_schedule(teacher_temperature)
        )
        for given in (temperature, teacher_temperature):
            if given is not None and not isinstance(given, Schedule) and not given > 0:
                raise ValueError(
                    f"a temperature must be above 0, got {given}: logits are divided by it. Use 1 for the plain "
                    "distribution."
                )
        if top is not None and top < 1:
            raise ValueError(
                f"top must be at least 1, got {top}: it is the number of probabilities that are sorted. Use 100 to "
                "1000, or None for all."
            )
        self.top = top
        self.causal = False

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Note whether the models predict the next token; refuse heads that cannot be compared."""
        if student.head and teacher.head and (student.head == _CAUSAL) != (teacher.head == _CAUSAL):
            raise ValueError(
                f"UniversalLogitLoss needs heads of one kind, got {student.head} (student) and {teacher.head} "
                "(teacher). One answers for the next token and the other for its own. Load both for the same task."
            )
        if student.head in _SINGLE_OUTPUT and 1 in (student.classes, teacher.classes):
            raise ValueError(
                f"UniversalLogitLoss needs at least 2 classes, got {student.classes} (student) and {teacher.classes} "
                "(teacher): the probability of a single class is always 1. Use SoftTargetLoss, which compares a "
                "single output by its square."
            )
        self.causal = student.head == _CAUSAL

    def needs(self) -> tuple[Needs, Needs]:
        """Both models' logits."""
        return Needs(logits=True), Needs(logits=True)

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The distance of the sorted probabilities at the positions that count."""
        ours, theirs = student.taught_logits, teacher.logits
        if ours is None or theirs is None:
            raise ValueError(
                f"UniversalLogitLoss needs logits of both models, but the {'student' if ours is None else 'teacher'} "
                "gave none. A model without a head has no answers to match; load it with its task head."
            )
        counted = self._positions(batch)
        if ours.dim() == theirs.dim() == 2:  # a row is a sample of one position
            rows = self._rows(batch)
            counted = (None, None) if rows is None else (rows[:, None], rows[:, None])
            ours, theirs = ours[:, None], theirs[:, None]  # (B, 1, K)
        for name, logits, valid in zip(("student", "teacher"), (ours, theirs), counted, strict=True):
            if valid is not None and valid.shape != logits.shape[:2]:
                raise ValueError(
                    f"UniversalLogitLoss needs labels and mask of the {name}'s own tokens, got {tuple(valid.shape)} "
                    f"for logits {tuple(logits.shape)}. They say which positions correspond. Where the teacher reads "
                    "other tokens than the student, add the columns teacher_attention_mask and teacher_labels."
                )
        degrees = self.temperature(batch.progress), self.teacher_temperature(batch.progress)
        return universal_logit(ours, theirs, degrees[0], *counted, self.top, degrees[1])

    def count(self, batch: Batch) -> Tensor:
        """Rows with a position that counts on both sides."""
        rows = self._rows(batch)
        return batch.row_count() if rows is None else rows.sum().float()

    def _rows(self, batch: Batch) -> Tensor | None:
        """(B,) bool, rows that count; None: all of them."""
        found = [side.any(1) for side in self._positions(batch) if side is not None]
        rows = batch.valid_rows()
        return rows if rows is not None else torch.stack(found).all(0) if found else None

    def _positions(self, batch: Batch) -> Positions:
        """(B, N) bool of both sides, positions that count; None: all of them."""
        ours, theirs = (_of_tokens(labels) for labels in (batch.labels, batch.teacher_labels))
        student = self._counted(ours, batch.mask)
        if theirs is None and batch.teacher_mask is None:
            return student, student
        if (ours is None) != (theirs is None):
            raise ValueError(
                f"UniversalLogitLoss needs token labels of both models or of none, got those of the "
                f"{'teacher' if ours is None else 'student'} alone. The first labelled token of the one is compared "
                "with the first labelled token of the other. Add the column "
                f"{'labels' if ours is None else 'teacher_labels'}."
            )
        return student, self._counted(theirs, batch.teacher_mask)

    def _counted(self, labels: Tensor | None, mask: Tensor | None) -> Tensor | None:
        real = None if mask is None else mask.bool()
        if labels is None:
            return real
        answered = (next_labels(labels) if self.causal else labels) != IGNORE_INDEX
        return answered if real is None else answered & real  # padding on the left predicts the first token: not real


def _of_tokens(labels: Tensor | None) -> Tensor | None:
    """Labels (B, N) of tokens, or None where there are none or labels of another kind."""
    return labels if labels is not None and labels.dim() == 2 and not labels.is_floating_point() else None
