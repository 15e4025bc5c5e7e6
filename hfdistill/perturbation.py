"""Gradient perturbation of the embedding output: LRC-BERT's way to a robust student (Fu et al. 2021).

One step makes two forward passes: the first finds the direction g in which the embedding output e hurts the loss most,
the second is made from e + epsilon * g / |g| (per row) and trained on. This module finds g and puts it in; who trains
is the trainer's matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hfdistill.anatomy import first_layer
from hfdistill.attachment import Attachment, Request


@contextmanager
def shifted_embeddings(student: nn.Module, shift: Tensor | None) -> Iterator[list[Tensor]]:
    """Within this context the first layer of `student` reads its input plus `shift`.

    Args:
        student: a transformers model.
        shift: (B, N, D), or None to change nothing.

    Yields:
        A list in which the embedding output of the (last) forward pass appears, (B, N, D).
    """
    seen: list[Tensor] = []
    done = False

    def hook(
        layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal done
        if done:  # a shared layer (ALBERT) is called again, with what it made itself
            return args, kwargs
        done = True
        embeddings = args[0] if args else kwargs["hidden_states"]
        seen.append(embeddings)
        if shift is None:
            if not embeddings.requires_grad:  # frozen embeddings (LoRA): nothing below asks for this gradient
                embeddings.requires_grad_(True)
            return args, kwargs
        moved = embeddings + shift.to(embeddings)
        return ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": moved})

    handle = first_layer(student).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def found_shift(
    student: nn.Module, inputs: Mapping[str, Any], attachment: Attachment, request: Request, epsilon: float
) -> Tensor:
    """The perturbation of one batch, found by a first pass that leaves no trace in memory banks; see `perturbation`.

    Args:
        student: on which the objective hangs; not wrapped, because its gradients are taken apart.
        inputs: of the student.
        attachment: the objective.
        request: what the objective is computed of.
        epsilon: length of the step.
    """
    objective = attachment.objective.eval()
    try:
        with shifted_embeddings(student, None) as seen, attachment.request(request):
            _, result = student(**inputs)
    finally:
        objective.train()
    return perturbation(result.loss, seen[0], epsilon)


def perturbation(loss: Tensor, embeddings: Tensor, epsilon: float) -> Tensor:
    """The step of length `epsilon` per row along the gradient of `loss`: epsilon * g / |g|.

    Fu et al. 2021, LRC-BERT, https://arxiv.org/abs/2012.07335, section 3.4; the normalisation per row and epsilon = 1
    are our choice, the paper's are not verified.

    Args:
        loss: scalar, computed from `embeddings`.
        embeddings: (B, N, D).
        epsilon: length of the step, in units of the embedding output.

    Returns:
        (B, N, D), detached, float32 or wider; 0 for rows without gradient.
    """
    (gradient,) = torch.autograd.grad(loss, embeddings)
    wide = gradient if gradient.dtype == torch.float64 else gradient.float()  # 1e-12 would be 0 in float16
    norm = wide.flatten(1).norm(dim=1).clamp(min=1e-12)  # (B,)
    step: Tensor = epsilon * wide / norm[:, None, None]
    return step.detach()
