"""The output head of a language model: where it is, what it is given, and a pass without the logits that it makes.

Losses over a large vocabulary take the features before the head and the head itself, and make the logits chunk by
chunk (see `functional.vocabulary`). That is the model's own answer only where nothing happens after the head; whether
something does is tried out, not looked up by family.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hfdistill.anatomy import Anatomy, base_model
from hfdistill.distributed.sharding import is_sharded
from hfdistill.representations import OutputHead

_LARGE = 100.0
"""How large logits are made to see whether a model bends (softcapping), which small ones would not show."""
_INSTEAD = "Use the losses on whole logits with this model (SoftTargetLoss, TaskLoss)."


class OutputHeadView:
    """Notes what the head is given while the context lasts.

    Args:
        model: a language model of transformers, or a PeftModel around one.
        whole: whether the logits are made; else they are of no tokens, (B, 0, V), and cost nothing.

    Raises:
        ValueError: see `output_projection`.
    """

    def __init__(self, model: nn.Module, whole: bool) -> None:
        self._head = output_projection(model)
        self._whole = whole
        self._features: list[Tensor] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> OutputHeadView:
        self._handles.append(self._head.register_forward_pre_hook(self._before))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def shown(self) -> OutputHead:
        """The features of the pass, with the head.

        Raises:
            ValueError: the head was not called once, on features (B, N, D).
        """
        if len(self._features) != 1 or self._features[0].dim() != 3:
            given = ", ".join(str(tuple(features.shape)) for features in self._features)
            raise ValueError(
                "expected the module that get_output_embeddings names to be given features (B, N, D) once in a pass, "
                f"but it was given {given or 'nothing'}. Which of them the logits are of cannot be told. {_INSTEAD}"
            )
        return OutputHead(self._features[0], self._head.weight, self._head.bias)

    def _before(self, head: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
        if not args:  # it was called by keyword: `shown` tells that nothing was seen
            return None
        self._features.append(args[0])
        return None if self._whole or args[0].dim() != 3 else (args[0][:, :0],)


def output_projection(model: nn.Module) -> nn.Linear:
    """The linear module that makes a language model's logits.

    Args:
        model: a model of transformers, or a PeftModel around one.

    Raises:
        ValueError: there is none, or it is more than a matrix and a bias (an adapter on it, quantised weights).
    """
    inner: Any = base_model(model)
    head = inner.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ValueError(
            f"expected the output head of {type(inner).__name__} to be a plain nn.Linear, got {type(head).__name__}. "
            "Its logits are made in chunks from its weight and bias alone, so that an adapter or quantised weights "
            f"would be left out. Keep adapters off the head, or: {_INSTEAD}"
        )
    return head


@torch.no_grad()
def check_output_head(model: nn.Module, anatomy: Anatomy, role: str) -> None:
    """Refuse a language model whose logits are not those of its head, or whose head is not whole.

    Two short rows are passed through the model in evaluation mode, with what the head answers changed: of the first
    row nothing, of the second to large numbers. The model must return just that.

    Args:
        model: a model of transformers, or a PeftModel around one.
        anatomy: its own.
        role: "student" or "teacher".

    Raises:
        ValueError: with what to do instead.
    """
    if is_sharded(model):
        raise ValueError(
            f"the {role}'s weights are in shards, and its head is read as a whole: its logits are made in chunks, "
            "outside of its forward pass. Train data-parallel (DDP, ZeRO-2), or use SoftTargetLoss and TaskLoss."
        )
    head, answered = output_projection(model), []

    def strained(_: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Tensor:
        scale = _LARGE / logits[1].abs().max().clamp(min=1e-6)
        answered.append(torch.stack([logits[0], logits[1] * scale]))
        return answered[-1]

    modes = [(module, module.training) for module in model.modules()]
    ids = torch.arange(8, device=head.weight.device).view(2, 4) % max(anatomy.vocabulary, 1)
    handle = head.register_forward_hook(strained)
    model.eval()
    try:
        with OutputHeadView(model, whole=True) as view:
            logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"]
        view.shown()
    finally:
        handle.remove()
        for module, training in modes:
            module.training = training
    if logits.shape != answered[0].shape or not all(map(_same, logits, answered[0])):
        raise ValueError(
            f"the {role} ({anatomy.family}) changes its logits after the head (softcapping, a scale, a transform): "
            f"what is made from the head in chunks would not be what it answers. {_INSTEAD}"
        )


def _same(given: Tensor, answered: Tensor) -> bool:
    """Whether two rows of logits are equal up to rounding; NaN is another fault, which is told of elsewhere."""
    wide = answered.double()
    rounding = 8 * torch.finfo(answered.dtype).eps * float(wide.abs().nan_to_num().max())
    return torch.allclose(given.double(), wide, rtol=0.0, atol=rounding, equal_nan=True)
