"""Hangs the objective on the student while it trains, so that one forward pass reaches everything trainable.

The objective becomes a submodule of the student's root, and a hook on the root computes it inside the (possibly
wrapped) forward: optimizer, zero_grad, clipping, DDP, FSDP2 and ZeRO then treat projectors as they treat the student's
own parameters. While no distillation request is open, the student behaves as if nothing hung on it; once detached,
nothing does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hfdistill.anatomy import Anatomy
from hfdistill.capture import Capture
from hfdistill.objective import Objective, ObjectiveResult
from hfdistill.representations import Batch, Representations

SUBMODULE = "distillation_objective"
"""Name of the objective on the student's root; reserved."""

PLAIN_HEADS = (
    "ForSequenceClassification",
    "ForImageClassification",
    "ForTokenClassification",
    "ForMaskedLM",
    "ForCausalLM",
)
"""Heads whose loss TaskLoss computes from logits and labels; of all others it takes the loss that the head returns."""


@dataclass
class Request:
    """What one distillation pass needs beside the student.

    Args:
        teacher: what the teacher showed of this batch.
        batch: labels, mask, progress.
        scales: see Objective.forward.
        task_loss: the user's function of (output, labels), in place of the task's own loss.
    """

    teacher: Representations
    batch: Batch
    scales: Tensor | None = None
    task_loss: Callable[[Any, Tensor | None], Tensor] | None = None


class Attachment:
    """The objective on the student, for as long as the context lasts.

    ::

        with Attachment(student, objective) as attachment:
            with attachment.request(Request(teacher_representations, batch)):
                output, result = wrapped_student(**inputs)

    Args:
        student: the root module whose forward is called.
        objective: bound to student and teacher already.

    Raises:
        ValueError: another objective hangs on this student.
    """

    def __init__(self, student: nn.Module, objective: Objective) -> None:
        self.student = student
        self.objective = objective
        self.anatomy = Anatomy.of(student)
        self._handles: list[RemovableHandle] = []
        self._request: Request | None = None
        self._view: Capture | None = None
        self._ignored_before: Any = None

    @property
    def attached(self) -> bool:
        """Whether the objective hangs on the student now."""
        return bool(self._handles)

    def __enter__(self) -> Attachment:
        if SUBMODULE in dict(self.student.named_children()):
            raise ValueError(
                f"another objective already hangs on this {type(self.student).__name__}. Two trainers would train one "
                "student at once; let the first finish, or give each its own student."
            )
        self.student.add_module(SUBMODULE, self.objective)
        # a compiled student is compiled without the objective, whose numbers change from step to step (progress)
        eager: Any = torch.compiler.disable
        self._handles = [
            self.student.register_forward_pre_hook(eager(self._before), with_kwargs=True),
            self.student.register_forward_hook(eager(self._after)),
        ]
        self._ignore_on_save()
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        del self.student._modules[SUBMODULE]
        vars(self.student).pop("_keys_to_ignore_on_save", None)
        if self._ignored_before is not None:
            vars(self.student)["_keys_to_ignore_on_save"] = self._ignored_before

    @contextmanager
    def request(self, request: Request) -> Iterator[None]:
        """Within this context a forward of the student returns (output, ObjectiveResult)."""
        self._request = request
        try:
            yield
        finally:
            self._request = None
            self._close_view()

    def _before(
        self, student: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._request is None:
            return None
        needs, _ = self.objective.needs(self._request.batch.progress)
        self._view = Capture(self.student, needs, self.anatomy)
        self._view.__enter__()
        return args, self._view.given(kwargs)

    def _after(self, student: nn.Module, args: Any, output: Any) -> tuple[Any, ObjectiveResult] | None:
        view, request = self._view, self._request
        self._close_view()
        if request is None or view is None:
            return None
        shown = view.representations(output)
        shown.loss = given_task_loss(output, request.batch.labels, request.task_loss, self.anatomy)
        return view.plain(output), self.objective(shown, request.teacher, request.batch, request.scales)

    def _close_view(self) -> None:
        if self._view is not None:
            self._view.__exit__(None, None, None)
            self._view = None

    def _ignore_on_save(self) -> None:
        """A `save_pretrained` in the middle of training must not write the objective's parameters."""
        self._ignored_before = vars(self.student).get("_keys_to_ignore_on_save")
        keys = {f"{SUBMODULE}.{key}" for key in self.objective.state_dict()}
        if keys:
            vars(self.student)["_keys_to_ignore_on_save"] = set(self._ignored_before or ()) | keys


def given_task_loss(
    output: Mapping[str, Any],
    labels: Tensor | None,
    function: Callable[[Any, Tensor | None], Tensor] | None,
    student: Anatomy,
) -> Tensor | None:
    """The task loss where it is not TaskLoss's to compute: the user's function, or a head of another kind.

    Args:
        output: the student's output.
        labels: the batch's labels.
        function: the user's function of (output, labels).
        student: whose head says whether its loss follows from logits and labels.
    """
    if function is not None:
        return function(output, labels)
    return None if student.head in PLAIN_HEADS else output.get("loss")


def task_loss_of(function: Callable[..., Tensor] | None) -> Callable[[Any, Tensor | None], Tensor] | None:
    """The Trainer's `compute_loss_func` as a function of output and labels alone, which we scale ourselves."""
    if function is None:
        return None
    return lambda output, labels: function(output, labels, num_items_in_batch=None)
