"""The gradient one level up: how meta networks must change for a student that follows them to do its task better.

A virtual student takes a few steps on a BilevelLoss alone, then one on the task; the task loss that it ends with is
differentiated through all of these steps, down to the meta networks. The real student is not moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hfdistill.anatomy import Anatomy
from hfdistill.capture import Capture
from hfdistill.losses import TaskLoss
from hfdistill.losses.bilevel import BilevelLoss
from hfdistill.representations import Batch, Needs, Representations

Weights = dict[str, Tensor]


class _Matching(nn.Module):
    """A BilevelLoss whose call has gradients to its meta networks."""

    def __init__(self, loss: BilevelLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Representations, teacher: Representations, batch: Batch) -> Tensor:
        return self.loss.matching(student, teacher, batch)


def meta_gradients(
    student: nn.Module,
    loss: BilevelLoss,
    inputs: Mapping[str, Any],
    teacher: Representations,
    batch: Batch,
    learning_rate: float,
) -> list[Tensor]:
    """Gradients of the task loss after virtual steps, for each parameter of the loss's meta networks.

    theta_0 are the student's weights and the loss's own projectors; theta_k+1 = theta_k - eta grad L(theta_k) for
    `loss.virtual_steps` steps, then one step on the task loss; returned is the gradient of the task loss (TaskLoss) at
    the last theta. All steps see the same batch. Jang et al. 2019, https://arxiv.org/abs/1905.05901, algorithm 1.

    Args:
        student: the model itself, not a wrapper of it; its weights stay as they are.
        loss: bound to both models.
        inputs: of the student.
        teacher: what the teacher showed of them.
        batch: what a loss may look at.
        learning_rate: eta of the virtual steps.

    Returns:
        One tensor per parameter, in the order of `loss.meta_networks().parameters()`.
    """
    anatomy, needs = Anatomy.of(student), loss.needs()[0] | Needs(logits=True)
    task, matching = TaskLoss(), _Matching(loss)
    task.bind(anatomy, anatomy)
    meta = list(loss.meta_networks().parameters())
    weights = _weights(student, leaving_out=loss)  # the objective may hang on the student
    projectors = _weights(matching, leaving_out=loss.meta_networks())

    def shown(values: Weights) -> Representations:
        with Capture(student, needs, anatomy) as view:
            output = functional_call(student, values, (), {**inputs, **view.arguments})
        return view.representations(output)

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        for _ in range(loss.virtual_steps):
            value = functional_call(matching, projectors, (shown(weights), teacher, batch))
            weights, projectors = (_stepped(value, values, learning_rate) for values in (weights, projectors))
        weights = _stepped(task(shown(weights), Representations(), batch), weights, learning_rate)
        outcome = task(shown(weights), Representations(), batch)
    gradients = torch.autograd.grad(outcome, meta, allow_unused=True)
    return [torch.zeros_like(value) if found is None else found for value, found in zip(meta, gradients, strict=True)]


def add_meta_gradients(loss: BilevelLoss, gradients: list[Tensor], share: Callable[[Tensor], Tensor]) -> None:
    """Add to the gradients of the meta networks' parameters.

    Args:
        loss: whose meta networks.
        gradients: see `meta_gradients`.
        share: what a gradient counts in this update (the mean over processes, over micro-batches).
    """
    for parameter, gradient in zip(loss.meta_networks().parameters(), gradients, strict=True):
        added = share(gradient)
        parameter.grad = added if parameter.grad is None else parameter.grad + added


def _weights(module: nn.Module, leaving_out: nn.Module) -> Weights:
    """What learns in `module`, without the parameters of another one."""
    others = {id(parameter) for parameter in leaving_out.parameters()}
    return {name: own for name, own in module.named_parameters() if own.requires_grad and id(own) not in others}


def _stepped(value: Tensor, weights: Weights, learning_rate: float) -> Weights:
    """The weights after a step down the gradient of `value`, which stays in the graph."""
    if not weights:
        return weights
    gradients = torch.autograd.grad(value, list(weights.values()), create_graph=True, allow_unused=True)
    return {
        name: old if gradient is None else old - learning_rate * gradient
        for (name, old), gradient in zip(weights.items(), gradients, strict=True)
    }
