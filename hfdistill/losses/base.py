"""The whole contract of a loss.

A loss says what it needs to see (`needs`), learns the two models' sizes once (`bind`), and compares (`forward`). It
gives an unweighted mean over valid items, and says how many those are (`count`), so that the objective can weigh
micro-batches and processes by them. It sees no Trainer, no transformers and no configuration file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from hfdistill.anatomy import Anatomy
from hfdistill.losses.method import Method
from hfdistill.representations import Batch, Needs, Representations
from hfdistill.schedules import Schedule, as_schedule


class DistillationLoss(nn.Module, ABC):
    """One term of an objective; subclass it and write `needs` and `forward`.

    Trainable parts (projectors, critics) and buffers (memory banks) are ordinary submodules, parameters and buffers,
    made in `bind`: the trainer optimises, clips, checkpoints and resumes them with the student, and keeps them out of
    the saved student.

    Args:
        weight: what the objective multiplies the value with; a number, or a Schedule of training progress.
    """

    method: ClassVar[Method | None] = None
    """Papers, evidence and restrictions, for docs/methods.md."""

    indexed: ClassVar[bool] = False
    """Whether the loss keeps something for each training row: then `bind_data` is called and batches have an index."""

    fewest_rows: int = 1
    """Rows that a batch needs for the whole loss to teach; with fewer (the last batch of an epoch) some of it is 0.
    Known after `bind`."""

    gather: bool = False
    """Whether the loss sees the rows of all processes as one batch."""

    labels_alone: ClassVar[bool] = False
    """Whether the loss knows nothing but labels: of a student with two heads (DeiT) it trains the one for labels."""

    task_heads: ClassVar[tuple[str, ...]] = ()
    """Kinds of task heads that the loss is for, as in `Anatomy.head`; none named: any."""

    same_tokens: ClassVar[bool] = True
    """Whether the two models must read the same tokens; False: each may have its own tokenizer."""

    def __init__(self, weight: float | Schedule = 1.0) -> None:
        super().__init__()
        self.weight = as_schedule(weight)
        if any(self.weight(progress) < 0 for progress in (0.0, 0.5, 1.0)):
            raise ValueError(
                f"the weight of a {type(self).__name__} must be 0 or above, got {weight}: below 0 the student would "
                "learn to be as wrong as it can. Leave the loss out, or write one of your own with the value negated."
            )

    def bind(self, student: Anatomy, teacher: Anatomy) -> None:
        """Learn both models' sizes: resolve layer maps, build projectors, refuse what cannot be compared.

        Called before the optimizer exists, and again when the objective meets another pair of models. Binding to the
        same sizes again keeps the trainable parts, so that a later stage goes on with them.

        Raises:
            ValueError: the two models cannot be compared; the message says what to do.
        """

    def bind_data(self, rows: int, labels: Tensor | None) -> None:
        """Learn how many rows the training set has; called after `bind`, before the optimizer exists, if `indexed`.

        Args:
            rows: length of the training set.
            labels: (rows,) class of each row on the CPU, or None where rows have no class labels.
        """

    @property
    def reads_classes(self) -> bool:
        """Whether the class of a row decides what is compared: a row of two classes (mixed images) has no such class.

        TaskLoss reads labels too, but learns both.
        """
        return False

    @abstractmethod
    def needs(self) -> tuple[Needs, Needs]:
        """What must be seen of the student, and of the teacher. Called after `bind`."""

    def cached_needs(self) -> Needs:
        """What is enough of the teacher where it is kept for later: all that is needed, unless a loss says less.

        Called after `bind`.
        """
        return self.needs()[1]

    @abstractmethod
    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        """The unweighted loss: a scalar mean over the valid items, 0 with a gradient where there is none."""

    def trained_depths(self, progress: float) -> frozenset[int] | None:
        """The student's depths that may learn at this progress: 0 embeddings, 1..L layers, L + 1 what follows; or all.

        A loss that teaches in stages overrides this; the trainer freezes the others. Called after `bind`.
        """
        return None

    def count(self, batch: Batch) -> Tensor:
        """Number of items that `forward` averages over, a float scalar; rows unless a loss says otherwise."""
        return batch.row_count()


def choose(name: str, value: str, accepted: Sequence[str]) -> str:
    """`value`, or an error that lists what keyword `name` accepts.

    Raises:
        ValueError: `value` is not accepted.
    """
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}.")
    return value
