"""How much memory a training step takes, estimated from one that is made, and how much there is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.training_args import OptimizerNames

from hfdistill.checks.examination import Examination
from hfdistill.checks.findings import Finding, Findings
from hfdistill.checks.preflight import models_of
from hfdistill.checks.reading import longest_row
from hfdistill.representations import Batch
from hfdistill.teachers import FrozenTeacher

_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
_PROBE = 64
"""Rows and columns of the parameter on which the optimizer's states are counted."""
_ADAM = 2.0
"""States per parameter where the optimizer could not be tried."""


def examined_memory(examination: Examination) -> Findings:
    """The estimate, part by part, against what is free on the device."""
    trained = [own for model in (examination.student, examination.objective) for own in model.parameters()]
    trained = [own for own in trained if own.requires_grad]
    states, how = _optimizer_states(examination)
    activations, scale = _activations(examination)
    figures: dict[str, Any] = {
        "student": _bytes([*examination.student.parameters(), *examination.student.buffers()]),
        "objective": _bytes([*examination.objective.parameters(), *examination.objective.buffers()]),
        "teacher": _teacher_bytes(examination),
        "gradients": _bytes(trained),
        "optimizer": int(states * sum(own.numel() * 4 for own in trained)),
        "activations": int(activations * scale),
    }
    total = sum(figures.values())
    to_come = figures["gradients"] + figures["optimizer"] + figures["activations"]
    free = free_memory(examination.trainer.args.device)
    parts = ", ".join(f"{name} {_said(size)}" for name, size in figures.items())
    message = f"a step takes about {_said(total)} per process (an estimate: {parts}; {how}"
    message += f", activations measured on one batch x {scale:.2g}" if scale != 1 else ", activations measured"
    message += f"); {'what is free is not known' if free is None else f'{_said(free)} are free'}."
    args = examination.trainer.args
    if args.activation_checkpointing or args.gradient_checkpointing:
        message += " Activation checkpointing, which is on, will make activations smaller."
    figures |= {"total": total, "free": free, "scale": scale}
    if free is None or to_come <= free:
        return Findings([Finding("memory", "ok" if free is not None else "note", message, figures=figures)])
    advice = (
        f"{_said(to_come)} are still to come. Halve per_device_train_batch_size and double "
        "gradient_accumulation_steps; cut long rows (max_length); activation_checkpointing=True; bf16=True; "
        "teacher_dtype='bfloat16'; compare fewer layers."
    )
    return Findings([Finding("memory", "warning", message, advice, figures)])


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take on a device; None where the system does not tell.

    On a GPU what torch holds in reserve counts as free; on the processor a limit of the container counts.

    Args:
        device: a GPU, or the processor.
    """
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + reserve)
    if device.type != "cpu" or not _MEMORY.is_file():
        return None
    lines = _MEMORY.read_text(encoding="ascii").splitlines()
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    limit, used = (_GROUP / name for name in ("memory.max", "memory.current"))
    if free is not None and limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
        free = min(free, max(0, int(most) - int(used.read_text())))
    return free


def _optimizer_states(examination: Examination) -> tuple[float, str]:
    """The optimizer's numbers per trained parameter, counted on a small one that it takes a step on; and how known."""
    trainer = examination.trainer
    name = OptimizerNames(trainer.args.optim).value
    if trainer.optimizer is not None or trainer.optimizer_cls_and_kwargs is not None:
        return _ADAM, "optimizer assumed to keep two numbers per parameter"
    parameter = nn.Parameter(torch.zeros(_PROBE, _PROBE, device=trainer.args.device))
    parameter.grad = torch.ones_like(parameter)
    try:
        kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, None)
        optimizer = kind([parameter], **options)
        optimizer.step()
    except (ImportError, TypeError, ValueError, RuntimeError, AttributeError):  # one that needs the model, or a GPU
        return _ADAM, f"{name} assumed to keep two numbers per parameter"
    held = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return _bytes(value for value in held if value.dim()) / (4 * _PROBE**2), f"{name} tried"


def _activations(examination: Examination) -> tuple[int, float]:
    """Bytes that a forward pass keeps for its backward pass, and the factor up to the largest batch of the run.

    On a GPU, where it can be had, the peak of forward and backward pass without the gradients.
    """
    inputs = max(examination.batches, key=_places)
    device, held = examination.trainer.args.device, _Held(examination)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    weights = examination.objective.weights(0.0)
    with torch.autograd.graph.saved_tensors_hooks(held.keep, _as_it_is):
        values = examination.values(inputs)
        terms = [weights[name] * value for name, value in values.items() if value.requires_grad]
    parameters = [own for own in examination.student.parameters() if own.requires_grad]
    kept = held.bytes
    if device.type == "cuda" and terms and parameters:
        gradients = torch.autograd.grad(torch.stack(terms).sum(), parameters, allow_unused=True)
        peak = torch.cuda.max_memory_allocated(device) - before
        kept = max(kept, peak - _bytes(gradient for gradient in gradients if gradient is not None))
    rows = examination.trainer.args.per_device_train_batch_size / Batch.of(inputs).size
    ids = inputs.get("input_ids")
    length = 1.0 if ids is None else max(1.0, longest_row(examination) / ids.shape[1])
    return kept, max(1.0, rows) * length


class _Held:
    """Counts what a forward pass keeps: storages, each once, without parameters and buffers."""

    def __init__(self, examination: Examination) -> None:
        models = [examination.student, examination.objective, examination.teacher_model]
        own = (tensor for model in models if model is not None for tensor in [*model.parameters(), *model.buffers()])
        self._own = {tensor.untyped_storage().data_ptr() for tensor in own}
        self._sizes: dict[int, int] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor that is saved for the backward pass."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        """What is held in all."""
        return sum(self._sizes.values())


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _teacher_bytes(examination: Examination) -> int:
    """What the models that a teacher holds take on the student's device, beside what they share with the student."""
    teacher, device = examination.teacher, examination.trainer.args.device
    if isinstance(teacher, FrozenTeacher) and teacher.device is not None and teacher.device.type != device.type:
        return 0
    held: dict[int, Tensor] = {}
    for model in [] if teacher is None else models_of(teacher):
        held |= {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    ours = {id(tensor) for tensor in [*examination.student.parameters(), *examination.student.buffers()]}
    return _bytes(tensor for key, tensor in held.items() if key not in ours)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _places(inputs: dict[str, Any]) -> int:
    """Numbers in the batch, as far as they decide how long its activations are."""
    return max((value.numel() for value in inputs.values() if isinstance(value, Tensor)), default=0)


def _said(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
