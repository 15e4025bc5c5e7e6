"""A teacher that is the base below the student's adapter: one copy of the weights is teacher and student.

The base answers with the adapter switched off. Each pass leaves the student exactly as it was, and whatever would let
training change the base, and so the teacher, is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hfdistill.adapters import head_parameters, looks_new
from hfdistill.anatomy import Anatomy, base_model
from hfdistill.representations import Needs, Representations
from hfdistill.teachers import FrozenTeacher

logger = logging.getLogger(__name__)

_KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""LoRA's ways to begin that leave the base as it is; the others (PiSSA, OLoRA, LoftQ, ...) take a part out of it."""


class SharedBaseTeacher(FrozenTeacher):
    """The student's own base, its adapter switched off, as the teacher: one copy of the weights in memory.

    It answers with the head that the base came with, also where the student trains a copy of that head
    (`modules_to_save`), in evaluation mode and without gradients.

    Args:
        student: a PeftModel; the one that is trained.

    Raises:
        TypeError: `student` is no PeftModel.
        ValueError: switching the adapter off would not give the base back, or training would change the base.
    """

    def __init__(self, student: nn.Module) -> None:
        # not FrozenTeacher's own, which freezes what it is given: here that is the student
        if base_model(student) is student:
            raise TypeError(
                "SharedBaseTeacher needs a PeftModel, whose adapter can be switched off, got a "
                f"{type(student).__name__}. Wrap the student by PEFT (peft_config=...), or load the teacher as a "
                "model of its own."
            )
        self.student = student
        self.model = base_model(student)
        self.anatomy = Anatomy.of(student)
        self.label_map = None
        _check_begins_whole(student)
        _check_stays_whole(student)
        own = {id(parameter) for parameter in self.base_parameters()}
        if told := looks_new({name: head for name, head in head_parameters(self.model).items() if id(head) in own}):
            logger.warning("the base teaches with its own head, and %s. See that it was trained on the task.", told)

    def prepare(self, device: torch.device) -> None:
        """Nothing: the weights are the student's, and are where the trainer has put it."""

    def represent(self, inputs: Mapping[str, Any], needs: Needs) -> Representations:
        """One forward pass of the base under no_grad; see Teacher.represent."""
        with adapter_off(self.student):
            shown = super().represent(inputs, needs)
        # where the student recomputes its activations, embeddings are made to require gradients under no_grad too
        shown.hidden_states = {layer: state.detach() for layer, state in shown.hidden_states.items()}
        return shown

    def base_parameters(self) -> list[nn.Parameter]:
        """The parameters of the teacher: the base's, without adapters and copied heads."""
        added = {id(own) for switch in _switches(self.model.modules()) for own in _adapter_parameters(switch)}
        return [own for own in self.model.parameters() if id(own) not in added]


@contextmanager
def adapter_off(student: nn.Module) -> Iterator[None]:
    """Within this context the base inside a PeftModel answers as before it was wrapped, and in evaluation mode.

    Call the base (`base_model(student)`), not the PeftModel. Afterwards the mode of every module, every adapter and
    every `requires_grad` is what it was.

    Args:
        student: a PeftModel.
    """
    modules = list(base_model(student).modules())  # once: at every step it is this walk that takes the time
    training = [module for module in modules if module.training]
    learning = [(own, own.requires_grad) for module in modules for own in module.parameters(recurse=False)]
    switched = [module for module in _switches(modules) if not module.disable_adapters]
    try:
        for module in switched:
            module.enable_adapters(False)
        for module in training:
            module.training = False  # not eval(): what is set here is what is set back
        yield
    finally:
        for module in switched:
            module.enable_adapters(True)
        for own, learns in learning:  # PEFT lets all of an adapter learn again, also what was frozen by hand
            own.requires_grad_(learns)
        for module in training:
            module.training = True


def shares_base(teacher: object, student: nn.Module) -> bool:
    """Whether a teacher is the student itself, or the very base that the student's adapter sits on."""
    base = base_model(student)
    return base is not student and (teacher is student or teacher is base)


def check_shared_base(teacher: object, student: nn.Module, sharded: bool) -> None:
    """Refuse runs in which a SharedBaseTeacher is not the base of the student, or lies in shards.

    Args:
        teacher: as the trainer has it.
        student: the student.
        sharded: whether FSDP runs the student.

    Raises:
        ValueError: with another way to hold the teacher.
    """
    if not isinstance(teacher, SharedBaseTeacher):
        return
    if teacher.student is not student:
        raise ValueError(
            "SharedBaseTeacher is of another model than the student, so that it is not frozen. Pass model=... and "
            "teacher=model, the student itself (model_init makes another one each time), or load the teacher as a "
            "model of its own."
        )
    if sharded:
        raise ValueError(
            "FSDP gathers a student's weights for a pass through all of it only, so its base cannot be asked by "
            "itself. Run it by DDP or DeepSpeed, or load the teacher as a model of its own."
        )


def _switches(modules: Iterable[nn.Module]) -> list[Any]:
    """Those modules that PEFT can switch off."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    return [module for module in modules if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def _adapter_parameters(switch: Any) -> Iterator[nn.Parameter]:
    for name, parameter in switch.named_parameters():
        if name.partition(".")[0] in switch.adapter_layer_names:
            yield parameter


def _check_begins_whole(student: Any) -> None:
    """Whether the base without the adapter is the model that was wrapped."""
    advice = "Load the teacher as a model of its own: that takes a second copy of the weights."
    for config in student.peft_config.values():
        settings = vars(config)
        begins = settings.get("init_lora_weights", True)
        if begins not in _KEEPS_BASE or settings.get("kasa_config") or settings.get("layer_replication"):
            raise ValueError(
                f"the adapter takes a part of the base into itself when it begins (init_lora_weights={begins!r}, or "
                "layer_replication, kasa_config), so the base without it is not the model that should teach. "
                f"{advice}"
            )
    switches, kind = _switches(student.modules()), student.active_peft_config.peft_type.value
    if any(vars(switch).get("merged_adapters") for switch in switches):
        raise ValueError(
            "the adapter is merged into its base, which would teach what the student knows already. Call "
            "model.unmerge_adapter() first."
        )
    if not student.active_peft_config.is_prompt_learning and (not switches or kind == "XLORA"):
        raise ValueError(f"the parts of {kind} cannot be switched off one by one. {advice}")


def _check_stays_whole(student: nn.Module) -> None:
    """Whether training leaves the base alone."""
    base, running = base_model(student), nn.modules.batchnorm._NormBase
    with adapter_off(student):
        changing = [name for name, own in base.named_parameters() if own.requires_grad]
    changing += [
        name for name, part in base.named_modules() if isinstance(part, running) and part.running_mean is not None
    ]
    if changing:
        raise ValueError(
            f"training changes {len(changing)} parts of the base itself ({changing[0]} is one): parameters of its own "
            "(bias='all', or unfrozen by hand), or running statistics of batch normalisation. The teacher would drift "
            "along with the student. Let the adapter and modules_to_save learn alone, or load the teacher as a model "
            "of its own."
        )
