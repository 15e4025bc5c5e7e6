"""A student read back from a checkpoint, also where its file has the weights under other names than the model.

transformers saves some families (ViT, DeiT) under the names of its older releases, so that those can read them, and
`from_pretrained` renames them; but the Trainer loads a checkpoint as it lies there and only warns of what it missed:
a resumed run would go on from the weights it was built with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfdistill.attachment import SUBMODULE

WEIGHTS = "model.safetensors"


def restore_renamed(student: nn.Module, checkpoint: str | Path) -> bool:
    """Load a checkpoint whose weights bear other names than the student's; do nothing where the names agree.

    Args:
        student: the model to load into.
        checkpoint: a folder that the Trainer saved.

    Returns:
        Whether it was loaded here.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    file = Path(checkpoint) / WEIGHTS
    if not isinstance(student, PreTrainedModel) or not file.is_file():
        return False
    with safe_open(file, framework="pt") as saved:
        names = set(saved.keys())
        shapes = {name: tuple(saved.get_slice(name).get_shape()) for name in names}
    if names <= set(student.state_dict()):
        _check_same(student.state_dict(), shapes, checkpoint)
        return False
    kind: Any = type(student)
    loaded, info = kind.from_pretrained(
        checkpoint, config=student.config, dtype=student.dtype, output_loading_info=True
    )
    if info["missing_keys"] or info["unexpected_keys"]:
        raise ValueError(
            f"{checkpoint} is a checkpoint of another model: it lacks {sorted(info['missing_keys'])[:3]} and holds "
            f"{sorted(info['unexpected_keys'])[:3]} besides. Resuming would mix two models; resume with the student "
            "that wrote it."
        )
    result = student.load_state_dict(loaded.state_dict(), strict=False)
    missing = [name for name in result.missing_keys if not name.startswith(f"{SUBMODULE}.")]
    if missing or result.unexpected_keys:
        raise ValueError(f"{checkpoint} could not be loaded: it lacks {missing[:3]}. Resume from an older checkpoint.")
    return True


def _check_same(state: Mapping[str, Tensor], saved: Mapping[str, tuple[int, ...]], checkpoint: str | Path) -> None:
    """Refuse a checkpoint of a wider, narrower, deeper or shallower student; sharded tensors are not looked at."""
    if any(type(value) is not Tensor for value in state.values()):
        return
    stored = {state[name].data_ptr() for name in saved}  # tied weights are saved under one of their names
    lacking = [name for name in state if name not in saved and state[name].data_ptr() not in stored]
    lacking = [name for name in lacking if not name.startswith(f"{SUBMODULE}.")]
    other = [name for name, shape in sorted(saved.items()) if shape != tuple(state[name].shape)]
    if lacking or other:
        what = (
            f"{other[0]} is {saved[other[0]]} there and {tuple(state[other[0]].shape)} here"
            if other
            else f"it lacks {', '.join(lacking[:3])}"
        )
        raise ValueError(
            f"{checkpoint} is a checkpoint of another student: {what}. Resuming would mix two models; make the "
            "student as the run that wrote it did, or begin a new run in another output_dir."
        )
