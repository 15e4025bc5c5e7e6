"""The objective's trainable parts in a checkpoint: one safetensors file beside the student, never in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from hfdistill.objective import Objective

OBJECTIVE_STATE = "distillation_objective.safetensors"
"""Name of the file."""


def save_objective(state: Mapping[str, Tensor], checkpoint: str | Path) -> None:
    """Write the trainable parts into a checkpoint folder; nothing where there are none.

    Args:
        state: of the objective, whole.
        checkpoint: the folder, made where it is not there.
    """
    if state:
        Path(checkpoint).mkdir(parents=True, exist_ok=True)
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        save_file(tensors, Path(checkpoint) / OBJECTIVE_STATE)


def load_objective(objective: Objective, checkpoint: str | Path) -> None:
    """Restore the trainable parts from a checkpoint folder; nothing where there are none.

    Raises:
        ValueError: the checkpoint lacks them, or holds those of another objective.
    """
    state = objective.state_dict()
    if not state:
        return
    path = Path(checkpoint) / OBJECTIVE_STATE
    if not path.is_file():
        raise ValueError(
            f"{checkpoint} has no {OBJECTIVE_STATE}, but the objective has trainable parts. Resuming with fresh ones "
            "would silently change the run. Resume from a checkpoint that this objective wrote, or start a new run "
            "from that student."
        )
    found = load_file(path)
    ours, theirs = ({key: tuple(value.shape) for key, value in parts.items()} for parts in (state, found))
    if ours != theirs:
        raise ValueError(
            f"{path} holds the trainable parts of another objective: {theirs} there, {ours} here. Resume with the "
            "objective and the models that wrote it, or start a new run from that student."
        )
    objective.load_state_dict(found)
