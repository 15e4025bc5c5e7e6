"""Where the teacher's weights lie in a run of many processes: whole in each, or in shards, gathered layer by layer.

A whole copy is the fastest and works everywhere. Shards save memory where student and teacher do not both fit: FSDP2
shards each layer of the teacher over the processes that shard the student's, and ZeRO-3 runs it by an engine of its
own. A teacher never has an optimizer, and what it shows is the same in both ways. A whole copy may also lie on a
device of its own, where memory beside the student is short: batches are sent there, and what is shown comes back.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from hfdistill.anatomy import base_model
from hfdistill.distributed.launch import check_same_weights
from hfdistill.distributed.sharding import is_sharded
from hfdistill.shared_base import SharedBaseTeacher
from hfdistill.teachers import FrozenTeacher, Teacher

PLACEMENTS = ("auto", "replicated", "sharded")
"""Values of `teacher_placement`, beside the name of a device."""

_PLACED: WeakSet[nn.Module] = WeakSet()
"""Teachers that were sharded here, which a later run of the same script may teach from again."""


class TeacherPlacement:
    """Puts the teacher where its weights are to lie, once; a teacher of the user's own places itself.

    Args:
        teacher: as the trainer has it.
        accelerator: the run's.
        asked: "auto" (sharded where the student's parameters are, by FSDP2 or ZeRO-3; else replicated), "replicated",
            "sharded", or a device, where each process holds a whole copy.
        compiled: compile the teacher's forward pass by torch.compile.

    Raises:
        ValueError: the teacher is in shards already, or cannot be sharded in this run; a device that is not there; a
            device or compiling for a teacher that is no model, or the student's own base, or in shards.
    """

    def __init__(
        self, teacher: Teacher | None, accelerator: Accelerator, asked: str = "auto", compiled: bool = False
    ) -> None:
        self.accelerator = accelerator
        self.compiled = compiled
        self.checked = False
        sharding = shards_student(accelerator)
        own = isinstance(teacher, FrozenTeacher)
        if asked == "sharded":
            _check_shardable(teacher, accelerator)
        self.sharded = own and (asked == "sharded" or (asked == "auto" and sharding))
        if isinstance(teacher, FrozenTeacher):
            _check_whole(teacher.model, self.sharded)
        self._settle_device(own_device(asked), teacher)
        if compiled:
            _check_compilable(teacher, self.sharded)

    def place(self, teacher: Teacher | None) -> None:
        """Get the teacher ready to teach; every process must call this, as often as it likes."""
        if teacher is None:
            return
        shared = isinstance(teacher, SharedBaseTeacher)  # it lies where the student lies, whose weights DDP makes one
        if isinstance(teacher, FrozenTeacher) and not shared and teacher.model not in _PLACED:
            if not self.checked:
                check_same_weights(teacher.model, self.accelerator, "teacher")
                self.checked = True
            if self.sharded:
                _shard(teacher.model, self.accelerator)
                _PLACED.add(teacher.model)
        teacher.prepare(self.accelerator.device)
        if self.compiled and isinstance(teacher, FrozenTeacher) and teacher.model._compiled_call_impl is None:
            teacher.model.compile()

    def _settle_device(self, device: torch.device | None, teacher: Teacher | None) -> None:
        if device is None:
            return
        _check_there(device)
        check_own_model(teacher, f"teacher_placement='{device}'")
        if isinstance(teacher, FrozenTeacher):
            teacher.device = device


def own_device(asked: str) -> torch.device | None:
    """The device that a value of `teacher_placement` names; None for a placement among processes.

    Args:
        asked: a value of `teacher_placement`.

    Raises:
        ValueError: neither a placement nor the name of a device.
    """
    if asked in PLACEMENTS:
        return None
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError):  # TypeError: no text
        device = torch.device("meta")
    if device.type == "meta":  # which is a device, and computes nothing
        raise ValueError(
            f"teacher_placement must be one of {', '.join(PLACEMENTS)} or the name of a device ('cpu', 'cuda:1'), got "
            f"{asked!r}. It says where the teacher's weights lie."
        )
    return device


def check_own_model(teacher: Teacher | None, argument: str) -> None:
    """Refuse an argument about the teacher's weights where these are the student's, or only the teacher knows of them.

    Args:
        teacher: as the trainer has it; None passes.
        argument: name and value.

    Raises:
        ValueError: with what to do.
    """
    if isinstance(teacher, SharedBaseTeacher):
        raise ValueError(
            f"{argument} is about the teacher's weights, and this teacher is the base of the student itself, one copy "
            "for both. Leave it out, or load the teacher as a model of its own."
        )
    if teacher is not None and not isinstance(teacher, FrozenTeacher):
        raise ValueError(
            f"{argument} needs a teacher that is a model, got a {type(teacher).__name__}, which alone knows where its "
            "weights lie and how it runs. Leave it out."
        )


def _check_there(device: torch.device) -> None:
    found = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count()
    if device.type == "cpu" or (found is not None and found.type == device.type and (device.index or 0) < count):
        return
    there = ["cpu", *(f"{found.type}:{index}" for index in range(count) if found is not None)]
    raise ValueError(
        f"teacher_placement={str(device)!r} names a device that is not here: there is {', '.join(there)}. Name one of "
        "these, or leave teacher_placement out: the teacher then runs where the student does."
    )


def _check_compilable(teacher: Teacher | None, sharded: bool) -> None:
    check_own_model(teacher, "teacher_torch_compile=True")
    if sharded:
        raise ValueError(
            "teacher_torch_compile=True compiles one whole model, and this teacher is in shards, gathered layer by "
            "layer as it runs. Set teacher_placement='replicated', or leave teacher_torch_compile out."
        )


def shards_student(accelerator: Accelerator) -> bool:
    """Whether a run spreads the student's parameters over its processes: FSDP2 and ZeRO-3 do, DDP and ZeRO-2 don't."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        return bool(accelerator.state.deepspeed_plugin.zero_stage == 3)
    return bool(kind == DistributedType.FSDP)


def prepare_fsdp(accelerator: Accelerator, student: nn.Module) -> None:
    """Say which of the student's layers FSDP shards one by one, where the user has not said."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layer_classes(student)


def layer_classes(model: nn.Module) -> list[str]:
    """Names of the classes of a model's layers, each of which is gathered by itself.

    These are what transformers keeps in one piece, less what holds the input embeddings (BertEmbeddings,
    ViTEmbeddings): Accelerate shards these by themselves, and nothing is sharded twice.
    """
    inner: Any = base_model(model)
    names = set(inner._no_split_modules or ())
    table = inner.get_input_embeddings()
    layers = (module for module in inner.modules() if type(module).__name__ in names)
    return sorted({type(layer).__name__ for layer in layers if all(part is not table for part in layer.modules())})


def _check_shardable(teacher: Teacher | None, accelerator: Accelerator) -> None:
    if not isinstance(teacher, SharedBaseTeacher):
        check_own_model(teacher, "teacher_placement='sharded'")
    if not shards_student(accelerator):
        kind, count = accelerator.distributed_type.value, accelerator.num_processes
        raise ValueError(
            f"teacher_placement='sharded' needs a run under FSDP2 or DeepSpeed ZeRO-3, whose processes share out the "
            f"teacher's weights as they do the student's; this one is {kind} with {count} process"
            f"{'' if count == 1 else 'es'}. Launch it with one of these (recipes/configs/accelerate/), or leave "
            "teacher_placement out: each process then holds the whole teacher."
        )


def _check_whole(model: nn.Module, sharded: bool) -> None:
    if not is_sharded(model):
        return
    if model not in _PLACED:
        raise ValueError(
            "the teacher is in shards: it was loaded within the student's DeepSpeed context, or sharded before it "
            "came here, so that outside its engine its parameters are empty. Pass the teacher's name or folder "
            "instead of the model (teacher='folder'), or load it before TrainingArguments are made."
        )
    if not sharded:
        raise ValueError(
            "the teacher was sharded for an earlier run of this script and cannot be put together again in place. "
            "Leave teacher_placement out, or load the teacher anew."
        )


def _shard(model: nn.Module, accelerator: Accelerator) -> None:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _shard_by_deepspeed(model, accelerator)
    else:
        _shard_by_fsdp(model, accelerator)


def _shard_by_fsdp(model: nn.Module, accelerator: Accelerator) -> None:
    """Each layer by itself, so that one is whole at a time; and the rest of the model."""
    from torch.distributed.fsdp import fully_shard

    plugin, mesh = accelerator.state.fsdp_plugin, accelerator.torch_device_mesh
    options: dict[str, Any] = {"reshard_after_forward": True, "offload_policy": plugin.cpu_offload}
    if mesh is not None:
        options["mesh"] = mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)]
    layers = layer_classes(model)
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, **options)
    fully_shard(model, **options)


def _shard_by_deepspeed(model: nn.Module, accelerator: Accelerator) -> None:
    """By an engine without an optimizer, which gathers each module's parameters when it is called."""
    import deepspeed

    zero = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
    options = {name: value for name, value in zero.items() if value != "auto" and name != "offload_optimizer"}
    kind = str(next(model.parameters()).dtype).removeprefix("torch.")
    precision = {"bfloat16": {"bf16": {"enabled": True}}, "float16": {"fp16": {"enabled": True}}}.get(kind, {})
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": options, **precision}
    deepspeed.initialize(model=model, config=config)[0].eval()  # its hooks on the model keep it
