"""Models whose parameters are spread over processes, by FSDP2 or by DeepSpeed's ZeRO-3: told apart, counted, gathered.

FSDP2 makes each parameter a DTensor, which knows its whole shape. ZeRO-3 leaves an empty parameter in the model and
keeps the rest in attributes of it that begin with `ds_`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn, zeros_like
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

_LOADED_BY_FIRST = "FSDP_CPU_RAM_EFFICIENT_LOADING"
"""What tells transformers to load weights in one process only, for FSDP to send to the others."""


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only a part of the model, by FSDP2 or ZeRO-3."""
    return any(isinstance(value, DTensor) or is_partitioned(value) for value in model.parameters())


def is_partitioned(parameter: Tensor) -> bool:
    """Whether ZeRO-3 has cut this parameter."""
    return "ds_numel" in vars(parameter)


def class_of(model: nn.Module) -> type[nn.Module]:
    """The class that a model was made with: FSDP2 puts one of its own, of another name, in its place."""
    kinds = type(model).__mro__
    return kinds[kinds.index(FSDPModule) + 1] if isinstance(model, FSDPModule) else type(model)


def element_count(parameter: Tensor) -> int:
    """Number of elements of a parameter, of which this process may hold a part."""
    count: int = vars(parameter).get("ds_numel", parameter.numel())
    return count


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, gathered from all processes, on the CPU; every process must call this.

    Args:
        module: a model, or a part of one; it need not be sharded.

    Returns:
        Name -> tensor. Of a module in shards of FSDP2 all processes but the first get nothing.
    """
    parts = [value for value in module.parameters() if is_partitioned(value)]
    if not parts:
        if is_sharded(module):
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

            state: Any = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
            return dict(state)
        return {name: value.detach().cpu() for name, value in module.state_dict().items()}
    import deepspeed

    with deepspeed.zero.GatheredParameters(parts):  # outside of it they are empty again
        return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def clear_gradients(model: nn.Module) -> None:
    """Set all gradients under ZeRO-3 to 0; call this before each update.

    DeepSpeed keeps the last gradient of a parameter that an update does not reach (a projector whose loss is over, a
    head while only layers are learnt), and would apply it again, and count it into the norm.

    Args:
        model: the student with its objective, in training; in other shards, or in none, nothing is done.
    """
    parts = [value for value in model.parameters() if "_z3_optimizer" in vars(value) and value.requires_grad]
    if not parts:
        return
    from deepspeed.utils import safe_set_local_grad

    for value in parts:
        safe_set_local_grad(value, zeros_like(vars(value)["ds_tensor"]))


@contextmanager
def loaded_whole() -> Iterator[None]:
    """Within this, `from_pretrained` loads a model whole in every process, however the student is loaded.

    Under ZeRO-3 it would give parameters that are empty outside the student's engine, and under FSDP with
    `cpu_ram_efficient_loading` weights in one process and none in the others.
    """
    from transformers.integrations import deepspeed

    reference = vars(deepspeed)["_hf_deepspeed_config_weak_ref"]
    config = None if reference is None else reference()
    loaded_by_first = os.environ.pop(_LOADED_BY_FIRST, None)
    deepspeed.unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)  # type: ignore[no-untyped-call]
        if loaded_by_first is not None:
            os.environ[_LOADED_BY_FIRST] = loaded_by_first
