"""What a launcher promised, and what came of it: many processes that train one student, or a run that only looks so.

Launchers start processes; that these find each other is up to the script's arguments, and where they do not, nothing
in transformers or Accelerate says so: each process trains its own student on all of the data, or one alone on a share
of the batch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers import TrainingArguments

from hfdistill.distributed.sharding import is_sharded

_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where torchrun and accelerate, Open MPI, MPICH and Intel MPI, and MVAPICH write how many processes they start."""
_OF_ONE_STUDENT = "Each of them would train a student of its own, on all of the data, and save it over the others'. "


def check_launch(args: TrainingArguments, accelerator: Accelerator) -> None:
    """Refuse a run whose processes are not connected, or not sharded as was asked.

    Args:
        args: of the run.
        accelerator: the run's.

    Raises:
        ValueError: with the command that does what was meant.
    """
    check_connected(accelerator.num_processes)
    _check_sharding(args, accelerator)


def check_connected(connected: int) -> None:
    """Refuse fewer connected processes than the launcher was told to start.

    What a launcher does not put into the environment is not found: `accelerate launch` with one process where two were
    meant, or a script started twice by hand.

    Args:
        connected: number of processes that know of each other, this one included.

    Raises:
        ValueError: with the command that does what was meant.
    """
    promised = promised_processes(os.environ)
    if promised > connected and "LOCAL_RANK" in os.environ:
        raise ValueError(
            f"{promised} processes were launched, but they are not connected: this one is alone. {_OF_ONE_STUDENT}"
            "Without a GPU, processes find each other only in a run that says that it uses the CPU, and what a "
            "configuration of Accelerate says of that does not reach the script. Pass use_cpu=True (--use_cpu true) "
            f"and launch by\n    torchrun --nproc_per_node {promised} your_script.py"
        )
    if promised > connected and any(name in os.environ for name in _SIZES):
        raise ValueError(
            f"MPI started {promised} processes, but they are not connected: this one is alone. {_OF_ONE_STUDENT}"
            f"Launch by\n    torchrun --nproc_per_node {promised} your_script.py"
        )
    if promised > connected:
        raise ValueError(
            "`accelerate launch` was told to start several processes and started one: without a GPU it needs mpirun "
            "for more. The run would train with a fraction of the batch that was meant. Pass use_cpu=True "
            "(--use_cpu true) and launch by\n    torchrun --nproc_per_node 2 your_script.py\nIf you want one process, "
            "say --num_processes 1, and leave MASTER_ADDR out of the environment."
        )


def check_data_parallel(args: TrainingArguments) -> None:
    """Refuse to compare students that are cut into shards, or by processes that are not connected.

    Args:
        args: of the comparison's runs.

    Raises:
        ValueError: FSDP or DeepSpeed was asked for; see check_connected.
    """
    check_connected(args.world_size)  # the trainer looks, too, but the teacher is measured before it is made
    if args.fsdp or args.deepspeed or _asked("ACCELERATE_USE_FSDP") or _asked("ACCELERATE_USE_DEEPSPEED"):
        raise ValueError(
            "an experiment predicts with teacher and students, and measures them, before and after each run, and FSDP "
            "and DeepSpeed cut a model into shards for one run alone. Launch it data-parallel "
            "(recipes/configs/accelerate/ddp.yaml), or train one student by DistillationTrainer in a script of your "
            "own."
        )


def promised_processes(environment: Mapping[str, str]) -> int:
    """How many processes a launcher says it starts; 1 where there is none, 2 where it says no more than "several".

    Args:
        environment: of a process.
    """
    sizes = [int(environment[name]) for name in _SIZES if environment.get(name, "").isdigit()]
    if sizes:
        return max(sizes)
    # accelerate names a meeting point to the one process that it starts itself only where more were asked for
    meeting = {"MASTER_ADDR", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"} <= environment.keys()
    return 2 if meeting and "RANK" not in environment else 1


def check_one_student(student: nn.Module, accelerator: Accelerator) -> None:
    """Refuse a student that is another one in each process where nobody sends it around.

    DDP and DeepSpeed send the first process's weights to all, and so does FSDP where it is told to load them in one
    process only; else FSDP takes from each process the part that it is to hold.

    Args:
        student: with all that is trained on it.
        accelerator: the run's.

    Raises:
        ValueError: see check_same_weights.
    """
    if accelerator.distributed_type != DistributedType.FSDP or is_sharded(student):
        return
    if not accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
        check_same_weights(student, accelerator, "student")


def check_same_weights(model: nn.Module, accelerator: Accelerator, whose: str) -> None:
    """Refuse a model that is another one in each process; nothing to do in one process. Every process must call this.

    Args:
        model: whole in each process.
        accelerator: the run's.
        whose: "student" or "teacher".

    Raises:
        ValueError: a process holds other weights than the first.
    """
    if accelerator.num_processes == 1:
        return
    every = accelerator.gather(fingerprint(model).to(accelerator.device)[None])  # (processes, 2)
    close = torch.isclose(every, every[:1], rtol=1e-6, atol=0.0).all(dim=1)
    if close.all():
        return
    other = int((~close).nonzero()[0])
    raise ValueError(
        f"process {other} has other weights of the {whose} than process 0. Each would see another model. Where "
        "FSDP loads weights in one process only (cpu_ram_efficient_loading), pass the teacher by its name, or switch "
        "that off; a head that is initialised at random must be so from one seed (transformers.set_seed) everywhere."
    )


def fingerprint(model: nn.Module) -> torch.Tensor:
    """Two numbers, (2,), that differ between any two models of different weights but for a rare chance."""
    sums = [
        value.sum(dtype=torch.float64).cpu() if value.device.type != "meta" else torch.tensor(torch.nan).double()
        for value in chain(model.parameters(), model.buffers())
        if value.is_floating_point()
    ]
    if not sums:
        return torch.zeros(2, dtype=torch.float64)
    each = torch.stack(sums)
    return torch.stack([each.sum(), (each * torch.arange(1, len(sums) + 1)).sum()])


def _check_sharding(args: TrainingArguments, accelerator: Accelerator) -> None:
    """Refuse a run that was to be sharded and is not, or in a way that changes the student or loses it."""
    kind = accelerator.distributed_type
    if (args.fsdp or _asked("ACCELERATE_USE_FSDP")) and kind != DistributedType.FSDP:
        raise ValueError(
            f"FSDP was asked for, but the run is {kind.value} with {accelerator.num_processes} processes: Accelerate "
            "leaves FSDP out, without a word, where there is no GPU or only one process. The student would not be "
            "sharded. Launch it on GPUs (accelerate launch --use_fsdp --fsdp_version 2 --num_processes 2 "
            "your_script.py), or leave fsdp out."
        )
    if kind == DistributedType.FSDP and accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ValueError(
            "FSDP version 1 flattens the parameters that projectors and captures are attached to, and transformers "
            "gives it up. Set fsdp_config={'version': 2}, or `fsdp_version: 2` in the configuration of Accelerate."
        )
    if (args.deepspeed or _asked("ACCELERATE_USE_DEEPSPEED")) and kind != DistributedType.DEEPSPEED:
        raise ValueError(
            f"DeepSpeed was asked for, but the run is {kind.value} with {accelerator.num_processes} processes. Its "
            "configuration would be ignored. Launch by torchrun or accelerate launch, or leave deepspeed out."
        )
    if kind == DistributedType.DEEPSPEED:
        _check_deepspeed(args, accelerator.state.deepspeed_plugin.deepspeed_config)


def _check_deepspeed(args: TrainingArguments, config: Mapping[str, object]) -> None:
    """Refuse configurations of DeepSpeed that change the student, or save none.

    Args:
        args: of the run.
        config: DeepSpeed's.
    """
    if "gradient_clipping" not in config and args.max_grad_norm != 1.0:
        raise ValueError(
            f"max_grad_norm is {args.max_grad_norm}, but the DeepSpeed configuration has no gradient_clipping, and "
            'DeepSpeed then clips at 1.0. Write "gradient_clipping": "auto" into it.'
        )
    zero = config.get("zero_optimization")
    options = zero if isinstance(zero, Mapping) else {}
    if options.get("stage") == 3 and options.get("stage3_gather_16bit_weights_on_model_save") is not True:
        raise ValueError(
            "ZeRO-3 without stage3_gather_16bit_weights_on_model_save saves no student, only shards that "
            'from_pretrained cannot read. Write "stage3_gather_16bit_weights_on_model_save": true into '
            '"zero_optimization", or `zero3_save_16bit_model: true` into the configuration of Accelerate.'
        )


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true")
