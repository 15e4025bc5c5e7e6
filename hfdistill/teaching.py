"""What a teacher is given of a batch, mixed as the student's rows are, in its own pixels; and what it shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hfdistill.images.pixels import PixelConversion
from hfdistill.mixup import MixedBatch
from hfdistill.representations import Needs, Representations
from hfdistill.row_checks import check_contents, contents_of, explained_inputs
from hfdistill.teacher_tokens import own_inputs
from hfdistill.teacher_watch import TeacherWatch
from hfdistill.teachers import FrozenTeacher, Teacher

if TYPE_CHECKING:
    from hfdistill.teacher_cache.cache import TeacherCache


class Teaching:
    """Asks the teacher, batch by batch, and watches its numbers.

    Args:
        teacher: None for objectives without one.
        conversion: of the student's pixels, where the teacher was made for others.
        cache: of what it showed before; None: it is always asked.
    """

    def __init__(
        self, teacher: Teacher | None, conversion: PixelConversion | None = None, cache: TeacherCache | None = None
    ) -> None:
        self.teacher = teacher
        self.conversion = conversion
        self.cache = cache
        self.watch = TeacherWatch()

    def show(
        self, inputs: Mapping[str, Any], needs: Needs, mixed: MixedBatch | None = None, step: int = 0
    ) -> Representations:
        """What the teacher shows of a batch: what the batch brings along of it, or else what it says when it is asked.

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
        kept = None if self.cache is None else self.cache.shown(inputs)
        if kept is not None:
            return kept
        needs = needs if self.cache is None else self.cache.asked(inputs, needs)
        shown = self._asked(self.teacher, self._converted(inputs), needs, mixed)
        self.watch.look(shown, step)
        if self.cache is not None:
            self.cache.keep(inputs, shown)
        return shown

    def _asked(
        self, teacher: Teacher, given: Mapping[str, Any], needs: Needs, mixed: MixedBatch | None
    ) -> Representations:
        if not isinstance(teacher, FrozenTeacher):
            return teacher.represent(given, needs)
        model, read = teacher.model, own_inputs(given) or given
        check_contents(read, contents_of(teacher.anatomy), "teacher")
        with explained_inputs(model, read, "teacher"), mixed.embeddings(model) if mixed else nullcontext():
            return teacher.represent(given, needs)

    def _converted(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch with the pixels that the teacher reads, where these are not a column of its own."""
        pixels = inputs.get("pixel_values")
        if self.conversion is None or not isinstance(pixels, Tensor) or own_inputs(inputs):
            return inputs
        return {**inputs, "pixel_values": self.conversion(pixels)}
