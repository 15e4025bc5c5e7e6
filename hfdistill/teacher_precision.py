"""The precision of a teacher's weights: which one a device computes fast, and a model brought to it.

A teacher is only read, so that it can do with fewer bits than a student that learns: bfloat16 halves its memory and,
where the hardware multiplies in it, takes a third of float32's time or less. Where it does not, bfloat16 is taken
apart into float32 and is slower than that. What a teacher shows is compared in float32 in any case.
"""

from __future__ import annotations

import logging
import re
from typing import Literal

import torch
from torch import nn

from hfdistill.anatomy import base_model

logger = logging.getLogger(__name__)

PRECISIONS = ("float32", "bfloat16", "float16", "checkpoint", "auto")
"""Values of `teacher_dtype`."""

CachePrecision = Literal["auto", "float32", "bfloat16", "float16"]
"""Values of `teacher_cache_dtype`."""

_OF_PROCESSORS = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")
"""What torch calls the instructions that multiply in bfloat16, of x86 and of Arm."""
_FLOAT16_OF_PROCESSORS = ("amx_fp16", "avx512_fp16", "fp16_arith")
_AMPERE = (8, 0)


def fast_bfloat16(device: torch.device | str) -> bool:
    """Whether a device multiplies in bfloat16, and so faster than in float32; False where that is not known.

    Args:
        device: the processor or a GPU.
    """
    return bool(bfloat16_unit(device))


def bfloat16_unit(device: torch.device | str) -> str:
    """What a device multiplies in bfloat16 with, in a few words; "" where it does not, or nothing is known of it.

    Args:
        device: the processor or a GPU.
    """
    device = torch.device(device)
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return f"compute capability {capability[0]}.{capability[1]}" if capability >= _AMPERE else ""
    mkldnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device.type == "cpu" and mkldnn:  # without it none of these instructions is used
        known = torch.cpu.get_capabilities()
        return next((name for name in _OF_PROCESSORS if known.get(name)), "")
    return ""


def fast_here(precision: str, device: torch.device | str) -> bool:
    """Whether a device multiplies in a precision no slower than in float32; True where that is not known.

    Args:
        precision: "float32", "bfloat16" or "float16".
        device: the processor or a GPU.
    """
    device = torch.device(device)
    if precision == "bfloat16" and device.type in ("cpu", "cuda"):
        return fast_bfloat16(device)
    if precision == "float16" and device.type == "cpu":
        known = torch.cpu.get_capabilities()
        return any(known.get(name) for name in _FLOAT16_OF_PROCESSORS)
    return True


def settled_precision(asked: str | None, device: torch.device | str) -> str | None:
    """The precision that was asked for; of "auto" the one that `device` computes fastest, which is told in the log.

    Args:
        asked: a value of `teacher_dtype`, or None.
        device: where the teacher is to run.
    """
    if asked != "auto":
        return asked
    unit = bfloat16_unit(device)
    if not unit:
        logger.info("teacher_dtype='auto': float32, since %s is not known to multiply in bfloat16.", device)
        return "float32"
    # a warning, as it is seen without a set-up of logging, and the teacher's numbers are rounded
    logger.warning("teacher_dtype='auto': the teacher runs in bfloat16, which %s has hardware for (%s).", device, unit)
    return "bfloat16"


def convert(model: nn.Module, precision: str) -> None:
    """Bring a model to a precision in place, as `from_pretrained(dtype=...)` loads it.

    Unlike `model.to(dtype)` it leaves what is computed, not loaded (rotary frequencies), and the few parts that
    transformers keeps in float32, as they are.

    Args:
        model: whole, not in shards.
        precision: "float32", "bfloat16" or "float16".
    """
    dtype: torch.dtype = vars(torch)[precision]
    kept = _kept_in_float32(model, dtype)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if any(part.search(name) for part in kept) else dtype)


def precision_of(model: nn.Module) -> str:
    """The precision that most weights of a model have, as `teacher_dtype` calls it, or its name in torch."""
    sizes: dict[torch.dtype, int] = {}
    for own in model.parameters():
        sizes[own.dtype] = sizes.get(own.dtype, 0) + own.numel()
    return str(max(sizes, key=lambda dtype: sizes[dtype])).removeprefix("torch.") if sizes else ""


def _kept_in_float32(model: nn.Module, dtype: torch.dtype) -> list[re.Pattern[str]]:
    known = vars(base_model(model))
    names = [*(known.get("_keep_in_fp32_modules_strict") or ())] if dtype != torch.float32 else []
    if dtype == torch.float16:  # what overflows there has room enough in bfloat16
        names += known.get("_keep_in_fp32_modules") or ()
    return [re.compile(rf"(^|\.){name}(\.|$)") for name in names]
