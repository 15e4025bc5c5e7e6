"""What every formula is made of: valid entries, means over them, float32 under autocast, checks of shapes.

A formula first blanks what does not count (before any arithmetic, since a NaN times 0 stays a NaN), then computes,
then takes the mean of what counts. Nothing here is a loss.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

Mask = Tensor | None
Temperature = float | Tensor
Rows = tuple[Tensor, Tensor, Mask]


def blanked(tensor: Tensor, valid: Mask = None) -> Tensor:
    """The tensor in float32 (float64 stays), 0 where `valid`, of its shape or of all but the last axis, is False."""
    if valid is not None:  # before any arithmetic: a NaN that is only multiplied by 0 stays a NaN, backward too
        tensor = tensor.masked_fill(~(valid if valid.ndim == tensor.ndim else valid[..., None]), 0)
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def spared(mask: Mask) -> Mask:
    """The mask, or None where it is known to leave nothing out: an accelerator is not waited for to know it."""
    return None if mask is not None and mask.device.type == "cpu" and bool(mask.all()) else mask


def real_length(mask: Tensor) -> int:
    """How many tokens of (B, N) there are up to the last that is valid in any row; all, on an accelerator."""
    if mask.device.type != "cpu":
        return mask.shape[1]
    real = mask.bool().any(0).nonzero()
    return int(real[-1]) + 1 if len(real) else min(mask.shape[1], 1)


def validity(mask: Mask, *inputs: Tensor) -> Tensor:
    """The mask as booleans, or all True; raise ValueError unless every input (..., D) has the rows (...) of it."""
    valid = torch.ones_like(inputs[0][..., 0], dtype=torch.bool) if mask is None else mask.bool()
    if any(valid.shape != rows.shape[:-1] for rows in inputs):
        raise ValueError(
            f"expected rows {[*valid.shape]} as in the {'first input' if mask is None else 'mask'}, got inputs of "
            f"{' and '.join(str([*rows.shape]) for rows in inputs)}. Pass one entry of the mask for each row compared."
        )
    return valid


def matched(student: Tensor, teacher: Tensor, mask: Mask = None) -> Rows:
    """Both sides blanked, the teacher detached, and the validity of their rows; ValueError for two shapes."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected one shape on both sides, got {[*student.shape]} (student) and {[*teacher.shape]} "
            "(teacher): entries are compared one by one. Project the student to the teacher's width, map the classes, "
            "or compare relations, which are free of the width (relation_kl, similarity_preserving)."
        )
    valid = None if mask is None else spared(validity(mask, student))
    return blanked(student, valid), blanked(teacher.detach(), valid), valid


def masked_mean(values: Tensor, valid: Mask = None) -> Tensor:
    """Mean of the valid values, 0 where none is; `valid` spreads to the shape of the values."""
    if valid is None:
        return values.sum() / max(values.numel(), 1)
    return values.masked_fill(~valid, 0).sum() / number(valid, values).clamp(min=1)


def number(valid: Tensor, values: Tensor) -> Tensor:
    """How many of the values are valid; `valid` spreads to their shape, without being made as large as they are."""
    return valid.sum() * (values.numel() // max(valid.numel(), 1))


def tempered_mean(rows: Tensor, temperature: Temperature, valid: Mask = None) -> Tensor:
    """T² times the mean of the valid rows (...); T may be one per row, (..., 1)."""
    return masked_mean((rows[..., None] * temperature**2)[..., 0], valid)


def squares(student: Tensor, teacher: Tensor) -> Tensor:
    """(s - t)², with 0 where both sides hold the same infinity: a class that is shut out on both sides."""
    shut_out = torch.isinf(student) & (student == teacher)  # -inf on both sides counts as equal
    return (student - teacher).masked_fill(shut_out, 0).square()


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The sum of `squares`; where a CPU can see that none was infinite, without the passes that look for it."""
    total = mse_loss(student, teacher, reduction="sum")
    if total.device.type == "cpu" and bool(total.isfinite()):
        return total
    return squares(student, teacher).sum()


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL(softmax(first) || softmax(second)) over the last axis, of logits (..., K) -> (...)."""
    log_first, log_second = first.log_softmax(-1), second.log_softmax(-1)
    first = log_first.exp()  # 0 log 0 = 0: the difference is filled, not the product, as it is the gradient of first
    return (first * (log_first - log_second).masked_fill(first == 0, 0)).sum(-1)


def unit(tensor: Tensor) -> Tensor:
    """Each row of (..., D) scaled to length 1; a row of length 0 is left alone."""
    square = tensor.square().sum(-1, keepdim=True)
    return tensor / torch.where(square > 1e-24, square, 1).sqrt()  # without a direction: left alone, bounded gradient


def product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product in the precision of its inputs, under autocast too."""
    with torch.autocast(left.device.type, enabled=False):  # it would take the product back to half precision
        return left @ right


def check_reduction(reduction: str, *accepted: str) -> None:
    """Raise ValueError unless the reduction is one of those accepted."""
    if reduction not in accepted:
        raise ValueError(f"expected a reduction among {accepted}, got {reduction!r}: it sets the size of the loss.")


def softened(student: Tensor, teacher: Tensor, temperature: Temperature, mask: Mask, classes: int = 2) -> Rows:
    """Both sides as `matched` gives them, divided by the temperature; ValueError for T <= 0 or too few classes."""
    if not isinstance(temperature, Tensor) and not 0 < temperature < math.inf:
        raise ValueError(f"expected a temperature above 0, got {temperature}: it divides the logits. Take 1 to 10.")
    if isinstance(temperature, Tensor) and temperature.ndim and temperature.shape[-1] != 1:
        raise ValueError(
            f"expected a temperature of one value or (..., 1), got {[*temperature.shape]}. Per row: T[..., None]."
        )
    if student.shape[-1] < classes:
        raise ValueError("expected at least 2 classes, got 1: its probability is always 1. Use logit_mse to learn it.")
    student, teacher, valid = matched(student, teacher, mask)
    if not isinstance(temperature, Tensor) and temperature == 1:
        return student, teacher, valid  # over a large vocabulary a division by 1 is a tensor of GBs on each side
    return student / temperature, teacher / temperature, valid
