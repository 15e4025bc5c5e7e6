"""What a teacher is given of a batch, and what it shows: mixed as the student's rows are, in its own pixels."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from hfdistill.images.pixels import PixelConversion
from hfdistill.mixup import MixedBatch
from hfdistill.representations import Needs, Representations
from hfdistill.row_checks import check_contents, contents_of, explained_inputs
from hfdistill.teacher_tokens import own_inputs
from hfdistill.teacher_watch import TeacherWatch
from hfdistill.teachers import FrozenTeacher, Teacher


class Teaching:
    """Asks the teacher, batch by batch, and watches its numbers.

    Args:
        teacher: None for objectives without one.
        conversion: of the student's pixels, where the teacher was made for others.
    """

    def __init__(self, teacher: Teacher | None, conversion: PixelConversion | None = None) -> None:
        self.teacher = teacher
        self.conversion = conversion
        self.watch = TeacherWatch()

    def show(
        self, inputs: Mapping[str, Any], needs: Needs, mixed: MixedBatch | None = None, step: int = 0
    ) -> Representations:
        """What the teacher shows of a batch.

        Args:
            inputs: a Trainer's, mixed where rows are mixed.
            needs: what the objective must see; nothing at all, and the teacher is not asked.
            mixed: the mixture, whose token embeddings the teacher is to read; None: rows are whole.
            step: for a message about broken numbers.

        Raises:
            ValueError: the teacher shows NaN or inf, or cannot take the rows.
        """
        if self.teacher is None or not needs:
            return Representations()
        given = self._converted(inputs)
        if not isinstance(self.teacher, FrozenTeacher):
            shown = self.teacher.represent(given, needs)
        else:
            model, read = self.teacher.model, own_inputs(given) or given
            check_contents(read, contents_of(self.teacher.anatomy), "teacher")
            with explained_inputs(model, read, "teacher"), mixed.embeddings(model) if mixed else nullcontext():
                shown = self.teacher.represent(given, needs)
        self.watch.look(shown, step)
        return shown

    def _converted(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch with the pixels that the teacher reads, where these are not a column of its own."""
        pixels = inputs.get("pixel_values")
        if self.conversion is None or not isinstance(pixels, Tensor) or own_inputs(inputs):
            return inputs
        return {**inputs, "pixel_values": self.conversion(pixels)}
