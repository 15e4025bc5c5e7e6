"""Layers of the student that stand still for a part of the training, as stage-by-stage distillation has it.

Frozen parameters require no gradient, so that neither the optimizer's momentum nor weight decay moves them, and their
modules run in evaluation mode, without dropout. When training ends, everything is as it was.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfdistill.anatomy import depth_groups
from hfdistill.objective import Objective


class LayerFreezing(TrainerCallback):
    """Freezes the depths that the objective does not let learn at this point of training, before each step.

    Args:
        student: the model that is trained.
        objective: says which depths learn when (`Objective.trained_depths`).

    Raises:
        ValueError: the student has no list of layers (ALBERT).
    """

    def __init__(self, student: nn.Module, objective: Objective) -> None:
        self.objective = objective
        self._handles: list[RemovableHandle] = []
        self._frozen: frozenset[int] = frozenset()
        self._look_at(student)

    def _look_at(self, student: nn.Module) -> None:
        self.student = student
        self.groups = [[part for part in group if part is not self.objective] for group in depth_groups(student)]
        parameters = [own for group in self.groups for module in group for own in module.parameters()]
        self._learnt = [parameter for parameter in parameters if parameter.requires_grad]

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Look at the student anew where model_init has made another."""
        if model is not None and model is not self.student:
            self._look_at(model)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Freeze what does not learn in the step that begins."""
        depths = self.objective.trained_depths(min(state.global_step / max(state.max_steps, 1), 1.0))
        everything = frozenset(range(len(self.groups)))
        self.freeze(frozenset() if depths is None else everything - depths)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Let everything learn again."""
        self.freeze(frozenset())

    def freeze(self, depths: frozenset[int]) -> None:
        """Make these depths, and no others, stand still."""
        if depths == self._frozen:
            return
        for handle in self._handles:
            handle.remove()
        frozen = [module for depth in depths for module in self.groups[depth]]
        self._handles = [module.register_forward_pre_hook(_evaluate) for module in frozen]
        still = {id(parameter) for module in frozen for parameter in module.parameters()}
        for parameter in self._learnt:
            parameter.requires_grad_(id(parameter) not in still)
        self._frozen = depths


def _evaluate(module: nn.Module, _: Any) -> None:
    """Before each pass, because the Trainer sets the whole model to training mode at each step."""
    module.eval()
