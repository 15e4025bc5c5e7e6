"""What to say when memory runs out: what was in the batch, and which cuts would free the most, the largest first.

The figures are estimates from the sizes of the models; they put the cuts in order, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from hfdistill.anatomy import Anatomy
from hfdistill.objective import Objective
from hfdistill.representations import Needs
from hfdistill.shared_base import SharedBaseTeacher
from hfdistill.teachers import FrozenTeacher, Teacher

# Numbers that the layers of a Transformer keep for the backward pass, for each place and unit of width: 34 bytes in 16
# bits, without those of the attention map, which fused kernels do not keep (Korthikanti et al. 2022, section 4.1).
_KEPT = 17
_COPIES = 3  # of a large tensor that a loss compares: itself, its softmax, its gradient
_WORDS = ("out of memory", "can't allocate memory")
_PER_TOKEN = ("ForCausalLM", "ForMaskedLM")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch raised this for want of memory, on an accelerator or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)
    )


@dataclass(frozen=True)
class BatchShape:
    """The size of a micro-batch.

    Args:
        rows: B.
        size: of a row: its tokens (N,), or an image's (channels, height, width).
    """

    rows: int
    size: tuple[int, ...]

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> BatchShape | None:
        """Read from a Trainer's inputs; None where no tensor tells."""
        for name in ("input_ids", "pixel_values", "inputs_embeds"):
            tensor = inputs.get(name)
            if isinstance(tensor, Tensor) and tensor.dim() > 1:
                return cls(tensor.shape[0], tuple(tensor.shape[1:] if name == "pixel_values" else tensor.shape[1:2]))
        return None

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        return f"{self.rows} images of {size}" if len(self.size) > 1 else f"{self.rows} rows of {size} tokens"

    def places(self, model: Anatomy) -> int:
        """Tokens or patches of a row, N."""
        if len(self.size) == 1:
            return self.size[0]
        return math.prod(model.grid_of(0) or (14, 14)) + model.prefix_tokens


@dataclass(frozen=True)
class Memory:
    """What a training step holds beside the student's own weights, in bytes, about.

    Args:
        activations: of the student, for its backward pass.
        states: hidden states and logits that losses compare, of both models.
        attention: attention maps that losses compare, of both models.
        teacher: the teacher's weights.
    """

    activations: float
    states: float
    attention: float
    teacher: float

    @classmethod
    def of(cls, shape: BatchShape, student: Anatomy, objective: Objective, teacher: Teacher | None) -> Memory:
        """The estimate for one micro-batch in float32."""
        places = shape.rows * shape.places(student)
        states = attention = 0.0
        for anatomy, needs in _sides(student, objective, teacher):
            widths = (
                anatomy.width if anatomy.stages is None else anatomy.stages.widths[m] for m in needs.hidden_states
            )
            values = places * sum(widths)
            if anatomy.head in _PER_TOKEN:
                values += places * anatomy.vocabulary
            heads = sum(anatomy.heads_of(layer) for layer in needs.attention_layers)
            states += 4.0 * _COPIES * values
            attention += 4.0 * _COPIES * heads * places * shape.places(student)
        weights = 0
        if isinstance(teacher, FrozenTeacher) and not isinstance(teacher, SharedBaseTeacher):
            weights = sum(value.numel() * value.element_size() for value in teacher.model.parameters())
        return cls(4.0 * _KEPT * student.depth * student.width * places, states, attention, weights)


def advice(
    shape: BatchShape | None,
    args: TrainingArguments,
    student: Anatomy,
    objective: Objective,
    teacher: Teacher | None,
) -> str:
    """What was in the step that ran out of memory, and what to cut, the largest first.

    Args:
        shape: of the last micro-batch; None: no step was begun.
        args: of the run.
        student: the student's anatomy.
        objective: bound.
        teacher: the teacher, or None.
    """
    if shape is None:
        return "Memory ran out before the first batch: student, teacher and optimizer alone are too large here."
    memory = Memory.of(shape, student, objective, teacher)
    cuts = sorted(_cuts(shape, args, memory, _precision(teacher)), reverse=True)
    listed = "\n".join(f"  - {words} (about {_readable(saved)})" for saved, words in cuts)
    captured = "; ".join(
        f"{side}: hidden states of {sorted(needs.hidden_states)}, attention of {sorted(needs.attention_layers)}"
        for side, (_, needs) in zip(("student", "teacher"), _sides(student, objective, teacher), strict=False)
    )
    return (
        f"Memory ran out with {shape} in a micro-batch. Captured layers: {captured}. "
        f"Teacher: {_precision(teacher) or 'none'}. What to cut, the largest first:\n{listed}"
    )


def _cuts(shape: BatchShape, args: TrainingArguments, memory: Memory, precision: str) -> list[tuple[float, str]]:
    per_row = memory.activations + memory.states + memory.attention
    cuts = []
    if shape.rows > 1:
        half, steps = max(1, shape.rows // 2), args.gradient_accumulation_steps
        words = f"per_device_train_batch_size={half} with gradient_accumulation_steps={steps * shape.rows // half}, "
        cuts.append((per_row / 2, words + "which makes the same update"))
    if len(shape.size) == 1:
        shorter = f"rows cut to {max(1, shape.size[0] // 2)} tokens (max_length of the tokenizer)"
        cuts.append(((memory.activations + memory.states) / 2 + memory.attention * 3 / 4, shorter))
    elif shape.rows > 0:
        cuts.append((per_row * 3 / 4, "images of half the height and width"))
    if memory.attention + memory.states:
        cuts.append(
            (memory.attention + memory.states, "fewer captured layers: layers= of the losses, or other losses")
        )
    if not args.activation_checkpointing:
        cuts.append((memory.activations * (1 - 1 / _KEPT), "activation_checkpointing=True, which costs time"))
    if precision == "float32":
        cuts.append((memory.teacher / 2, "the teacher in 16 bits: teacher_dtype='bfloat16'"))
    return cuts


def _sides(student: Anatomy, objective: Objective, teacher: Teacher | None) -> list[tuple[Anatomy, Needs]]:
    ours, theirs = objective.needs()
    return [(student, ours)] if teacher is None else [(student, ours), (teacher.anatomy, theirs)]


def _precision(teacher: Teacher | None) -> str:
    """Of the teacher's weights, as `teacher_dtype` calls it, or what else it is; "" without one."""
    if isinstance(teacher, SharedBaseTeacher):
        return "the student's own base"
    if not isinstance(teacher, FrozenTeacher):
        return "" if teacher is None else type(teacher).__name__
    return str(next(teacher.model.parameters()).dtype).removeprefix("torch.")


def _readable(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.2g} MiB"
