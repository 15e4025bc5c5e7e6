"""A Trainer's inputs told apart: what the student's forward takes, the labels, and what a loss may look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hfdistill.anatomy import Anatomy
from hfdistill.mixup import MixedBatch
from hfdistill.representations import Batch
from hfdistill.teacher_tokens import without_teachers


class ModelInputs:
    """Reads the batches of one run.

    Args:
        student: the student's anatomy.
        teacher: the teacher's, or None.
        label_names: which inputs are labels; the first is what a loss is given.
        label_smoothing: the Trainer's `label_smoothing_factor`.
    """

    def __init__(
        self, student: Anatomy, teacher: Anatomy | None, label_names: Sequence[str], label_smoothing: float
    ) -> None:
        self.ours = student.input_names
        self.theirs = () if teacher is None else teacher.input_names
        self.label_names = tuple(label_names)
        self.label_smoothing = label_smoothing

    @property
    def label_name(self) -> str:
        """What the labels are called."""
        return self.label_names[0] if self.label_names else "labels"

    @property
    def with_labels(self) -> bool:
        """Whether the student's forward takes the labels; of DeiT with two heads it does not."""
        return self.label_name in self.ours

    def of_student(self, inputs: Mapping[str, Any], labels: bool = True) -> dict[str, Any]:
        """What the student's forward takes of a batch.

        Args:
            inputs: the batch.
            labels: with the labels, if the forward takes them.
        """
        given = without_teachers(inputs, self.ours, (*self.theirs, *self.label_names))
        return {name: value for name, value in given.items() if labels or name not in self.label_names}

    def labelled(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the student's forward takes, and the labels whether it takes them or not."""
        return self.of_student(inputs) | {name: inputs[name] for name in self.label_names if name in inputs}

    def batch(self, inputs: Mapping[str, Any], progress: float, mixed: MixedBatch | None = None) -> Batch:
        """What a loss may look at.

        Args:
            inputs: the batch, mixed where rows are mixed.
            progress: share of training done, 0 to 1.
            mixed: the mixture, or None.
        """
        batch = Batch.of(inputs, self.label_name, progress)
        batch.label_smoothing = self.label_smoothing
        if mixed is not None:
            batch.partner_labels, batch.partner_shares = mixed.partner_labels, mixed.mix.coefficients
        return batch
