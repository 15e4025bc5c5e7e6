"""Sees to it that a teacher's broken numbers stop the run instead of the student.

On a CPU each batch is looked at as it comes. On an accelerator looking would make every step wait for the device, so
the finding is kept there and read when the trainer logs or saves, before anything broken is written down.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hfdistill.representations import Representations


class TeacherWatch:
    """Looks for NaN and +inf in what a teacher shows; -inf is how classes are switched off, and passes.

    Attributes:
        at_once: whether a CPU's numbers are checked as they come; False where several processes must stop together, or
            the run is to go on without the batch (see faults.nonfinite).
    """

    def __init__(self) -> None:
        self.at_once = True
        self._first_bad_step: dict[str, Tensor] = {}

    def look(self, shown: Representations, step: int) -> None:
        """Note, and on a CPU check at once, whether all numbers are usable.

        Raises:
            ValueError: see `check`.
        """
        wait = not self.at_once
        for key, tensor in _tensors(shown):
            bad = ~(tensor.amax() < torch.inf) if tensor.numel() else tensor.new_zeros((), dtype=torch.bool)
            never = torch.full((), -1, dtype=torch.long, device=tensor.device)
            before = self._first_bad_step.get(key, never)
            self._first_bad_step[key] = torch.where(bad & (before < 0), torch.full_like(never, step), before)
            wait = wait or tensor.device.type != "cpu"
        if not wait:
            self.check(shown)

    def first_bad(self, device: torch.device) -> Tensor:
        """The step in which the teacher's numbers were first broken, a scalar on `device`; -1 if they never were."""
        steps = [step.to(device) for step in self._first_bad_step.values()]
        return torch.stack(steps).max() if steps else torch.full((), -1, dtype=torch.long, device=device)

    def forget(self) -> None:
        """Look anew, as if nothing had been seen."""
        self._first_bad_step.clear()

    def check(self, shown: Representations | None = None) -> None:
        """Stop if anything bad was seen.

        Args:
            shown: the batch at hand, to name its rows.

        Raises:
            ValueError: with the step, the key and, where known, the rows.
        """
        for key, first in list(self._first_bad_step.items()):
            step = int(first)
            if step < 0:
                continue
            self._first_bad_step.clear()  # told once: who goes on after it starts to look anew
            rows = _bad_rows(dict(_tensors(shown))[key]) if shown is not None else "see that batch"
            raise ValueError(
                f"the teacher's {key} held NaN or inf in the batch of step {step} (rows: {rows}). The student would "
                "become NaN with it. Look at those inputs; a teacher in float16 often overflows: load it in float32 "
                "or bfloat16 (teacher_dtype)."
            )


def _tensors(shown: Representations) -> Iterator[tuple[str, Tensor]]:
    if shown.logits is not None:
        yield "logits", shown.logits
    if shown.output_head is not None:
        yield "output_head.features", shown.output_head.features
    for layer, state in shown.hidden_states.items():
        yield f"hidden_states[{layer}]", state
    for (layer, pooling), vectors in shown.pooled_states.items():
        yield f"pooled_states[{layer}, {pooling}]", vectors
    for layer, attention in shown.attentions.items():
        for name in ("query", "key", "value", "given_probabilities", "given_scores"):
            tensor = vars(attention)[name]
            if tensor is not None:
                yield f"attentions[{layer}].{name}", tensor


def _bad_rows(tensor: Tensor) -> str:
    bad = (tensor.isnan() | tensor.isposinf()).flatten(1).any(dim=1)  # (B,)
    return ", ".join(str(int(row)) for row in bad.nonzero().flatten()[:8])
