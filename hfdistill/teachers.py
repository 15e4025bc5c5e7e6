"""Who teaches: anything that can show representations of a batch.

`Teacher` is the protocol, `FrozenTeacher` a transformers model that never changes. A teacher is held beside the
student, never inside it, so that `student.train()`, the optimizer and `save_pretrained` do not reach it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hfdistill.anatomy import Anatomy
from hfdistill.distributed.sharding import class_of, is_sharded, loaded_whole
from hfdistill.model_loading import explained_loading
from hfdistill.representations import Needs, Representations
from hfdistill.teacher_pass import TeacherPass
from hfdistill.teacher_tokens import own_inputs


@runtime_checkable
class Teacher(Protocol):
    """What the trainer asks of a teacher; implement it to teach from an ensemble, a server or a file.

    Attributes:
        anatomy: the sizes that losses bind to, and the inputs that it takes.
    """

    anatomy: Anatomy

    def prepare(self, device: torch.device) -> None:
        """Get ready to teach on `device`; called once, before the first batch."""

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        """Show what `needs` asks for of this batch, without gradients.

        Args:
            inputs: the batch as the Trainer has it, on the device, labels and other models' inputs included.
            needs: what the objective must see.
        """


class FrozenTeacher:
    """A transformers model as a teacher: in evaluation mode, without gradients, never trained.

    Freezing changes the given model: its parameters no longer require gradients.

    Args:
        model: a PreTrainedModel, or a PeftModel around one.
        label_map: for each student class the teacher class that means the same; for heads whose labels stand in
            another order. Length K, each teacher class at most once.

    Raises:
        TypeError: `model` is not a transformers model.
        ValueError: `label_map` names a class the teacher does not have, or one twice.
    """

    device: torch.device | None = None
    """Where it runs; None: where the student does (see `teacher_placement`)."""

    def __init__(self, model: nn.Module, label_map: Sequence[int] | None = None) -> None:
        self.anatomy = Anatomy.of(model)
        self.model = model.eval().requires_grad_(False)
        self.label_map: Tensor | None = None
        if label_map is not None:
            self._map_labels(list(label_map))

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        like: nn.Module,
        dtype: str | torch.dtype = "float32",
        trust_remote_code: bool = False,
        **loading: Any,
    ) -> FrozenTeacher:
        """Load a teacher from a folder or the hub, with the Auto class of the student's task.

        Args:
            name: a folder or a hub name.
            like: the student, whose head says which Auto class is right.
            dtype: precision of the teacher's weights; "auto" takes what the checkpoint was saved in.
            trust_remote_code: run the code that comes with the model; without it such a teacher is refused.
            loading: further arguments of `from_pretrained` (revision, token).

        Raises:
            FileNotFoundError: there is no such model.
            ValueError: no Auto class fits the student, the checkpoint lacks a part of the head, is broken, or brings
                code of its own.
        """
        options = {"dtype": dtype, "trust_remote_code": trust_remote_code, **loading}
        with explained_loading(name, "teacher"), loaded_whole():
            model, info = auto_class(like).from_pretrained(name, output_loading_info=True, **options)
        check_trained(name, info["missing_keys"])
        return cls(model)

    def prepare(self, device: torch.device) -> None:
        """Move the model to `device`, or to a device of its own; in shards it lies where it runs."""
        place = self.device or device
        if not is_sharded(self.model):
            self.model.to(place)
        if self.label_map is not None:
            self.label_map = self.label_map.to(place)

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        """One forward pass under no_grad; see Teacher.represent."""
        if self.model.training:  # a user's train() on a container of both models must not switch dropout on
            self.model.eval()
        given = own_inputs(inputs) or inputs  # the teacher's own tokens, where it has any
        known = {name: given[name] for name in self.anatomy.input_names if name in given and name != "labels"}
        if needs.output_head and self.label_map is not None:
            raise ValueError(
                "label_map puts classes of logits in another order, and the objective reads the teacher's own head, "
                "whose words would stay as they are. Leave label_map out, or use SoftTargetLoss."
            )
        # not inference_mode: no faster at real sizes, and a loss could not keep what it gives for its own gradient
        with torch.no_grad():
            shown = self.teacher_pass.show(self._readable(known), needs)
        if shown.logits is not None and self.label_map is not None:
            shown.logits = shown.logits.index_select(-1, self.label_map)
        student = next((value.device for value in known.values() if isinstance(value, Tensor)), None)
        return shown if student is None or self.device in (None, student) else shown.to(student)

    @cached_property
    def teacher_pass(self) -> TeacherPass:
        """The model's passes, each no longer than it must be."""
        return TeacherPass(self.model, self.anatomy)

    def _readable(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A batch where the model is, numbers such as pixels in its precision: its weights multiply no others."""
        dtype = next((own.dtype for own in self.model.parameters() if own.is_floating_point()), torch.float32)
        read = dict(given)
        for name, value in given.items():
            if isinstance(value, Tensor):
                place = self.device or value.device
                kind = dtype if value.is_floating_point() else value.dtype
                read[name] = value.to(place, kind, non_blocking=place != value.device and value.is_pinned())
        return read

    def _map_labels(self, label_map: list[int]) -> None:
        classes = self.anatomy.classes
        numbers = all(isinstance(index, int) for index in label_map)
        if not numbers or len(set(label_map)) != len(label_map) or not all(0 <= at < classes for at in label_map):
            raise ValueError(
                f"label_map must name each of the teacher's classes 0 to {classes - 1} at most once, got {label_map}. "
                "Entry k is the teacher class that means student class k."
            )
        self.label_map = torch.tensor(label_map)
        names = {ours: self.anatomy.label_names.get(theirs, str(theirs)) for ours, theirs in enumerate(label_map)}
        self.anatomy = replace(self.anatomy, classes=len(label_map), label_names=names)


def check_trained(name: str, missing: Iterable[str]) -> None:
    """Refuse a teacher of which parts are as random as they were made.

    Args:
        name: of the teacher.
        missing: names of the weights that its checkpoint lacks.

    Raises:
        ValueError: there are any.
    """
    lacking = sorted(missing)
    if lacking:
        raise ValueError(
            f"the teacher {name!r} has no trained weights for {', '.join(lacking[:4])}, so these would be random and "
            "the student would learn noise. Fine-tune the teacher on the task first, or pass the folder of one that "
            "is."
        )


def auto_class(model: nn.Module) -> Any:
    """The Auto class that loads models with the same kind of head as `model`.

    Raises:
        ValueError: `model` is of a class that no Auto class knows.
    """
    from transformers.models.auto import modeling_auto

    kind = class_of(model)
    for auto in vars(modeling_auto).values():
        mapping = vars(auto).get("_model_mapping") if isinstance(auto, type) else None
        if mapping is not None and auto.__name__ != "AutoModelForPreTraining" and kind in _classes(mapping, model):
            return auto
    raise ValueError(
        f"no Auto class loads {kind.__name__}, so the teacher's class is not known. Load the teacher yourself and "
        "pass the model."
    )


def _classes(mapping: Any, model: Any) -> tuple[type, ...]:
    found = mapping.get(type(model.config), None)
    return found if isinstance(found, tuple) else (found,)
