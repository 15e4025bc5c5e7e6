"""Uncertainty-aware mixup: teach fewer rows, those that the student is least sure of (Xu et al. 2020, UNIX).

One forward pass of the student without gradients ranks the rows of a batch; the teacher, which costs most, and the
student's training pass see only the first of them, mixed with others the more the surer the student is of them.
Images are mixed pixel by pixel. Token ids cannot be averaged: both models read the mixed token embeddings (what they
would be given as `inputs_embeds`), each those of its own. Padding counts as the zero vector, whatever stands in it,
and a place where either row has a token is no padding.

This module chooses, mixes and puts the embeddings in; who trains, and what is learnt, is the trainer's matter. A batch
that is mixed in other ways (see `image_mixing`) is a `MixedBatch`, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hfdistill.anatomy import base_model
from hfdistill.distributed.sharding import is_sharded
from hfdistill.functional.supervision import UNCERTAINTIES, unix_mask, unix_scores


@dataclass(frozen=True)
class Mix:
    """Which rows of a batch are kept, and what is mixed into each.

    Args:
        size: n, rows of the batch.
        kept: (k,) row numbers, the most uncertain first.
        partners: (k,) row numbers.
        coefficients: (k,) share of the partner in each kept row, 0 to 1; float32.
        box: top, bottom, left and right of the piece of the partner's image that is pasted in, in shares of the height
            and of the width; None where whole rows are blended.
    """

    size: int
    kept: Tensor
    partners: Tensor
    coefficients: Tensor
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class UncertaintyMixup:
    """How rows are chosen and mixed.

    Row r in order of uncertainty becomes (1 - l c_r) x_r + l c_r x', x' a row of the batch drawn at random; one l per
    batch, uniform on [0, 1], and c_r = sigmoid(sharpness (r / n - (2 b - 1) / (2 n))), b = unmixed n.

    Xu, Liu and Loy 2020, Computation-Efficient Knowledge Distillation via Uncertainty-Aware Mixup,
    https://arxiv.org/abs/2012.09413; the defaults are those of the authors' code on CIFAR-100 (of 64 rows 48 and 32).

    Args:
        keep: share of the rows that are taught, in (0, 1].
        unmixed: share of the rows, the most uncertain, into which little is mixed, in [0, 1].
        sharpness: how sudden mixing sets in after these, above 0.
        strategy: what uncertainty is: "entropy", "least_confidence" or "margin".

    Raises:
        ValueError: a share that is none, a sharpness that is not positive, an unknown strategy.
    """

    keep: float = 0.75
    unmixed: float = 0.5
    sharpness: float = 10.0
    strategy: str = "entropy"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1 or not 0 <= self.unmixed <= 1 or not self.sharpness > 0:
            raise ValueError(
                f"expected 0 < keep <= 1, 0 <= unmixed <= 1 and sharpness > 0, got {self}: the first two are shares "
                "of a batch. Use the defaults, 0.75, 0.5 and 10."
            )
        if self.strategy not in UNCERTAINTIES:
            raise ValueError(f"strategy must be one of {', '.join(map(repr, UNCERTAINTIES))}, got {self.strategy!r}.")

    def choose(self, logits: Tensor, mask: Tensor | None = None) -> Mix:
        """Rank the rows by the student's logits, and draw a partner for each and the strength of mixing.

        Args:
            logits: (n, K), or (n, N, K) of heads that answer for tokens: then a row is as unsure as its mean token.
            mask: (n, N), 1 = real token, or None.

        Raises:
            ValueError: fewer than two classes.
        """
        scores, rows = unix_scores(logits, self.strategy), len(logits)
        if scores.ndim == 2:
            real = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool()
            scores = scores.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp(min=1)  # (n,)
        count = max(1, round(self.keep * rows))
        strength = float(torch.rand(()))  # on the CPU, like the permutation: the device need not wait
        coefficients = strength * unix_mask(rows, round(self.unmixed * rows), self.sharpness)
        return Mix(
            rows,
            scores.argsort(descending=True, stable=True)[:count],
            torch.randperm(rows)[:count].to(scores.device),
            coefficients[:count].float().to(scores.device),
        )


@dataclass(frozen=True)
class MixedBatch:
    """The mixed rows, as both models are given them.

    Args:
        inputs: what the batch held, the kept rows of it: numbers are mixed; of token ids (and token types) each place
            holds the kept row's, and where that is padding the partner's; class labels are the kept rows'.
        mix: who is mixed with whom.
        partner_ids: (k, N) token ids of the partners; None where there are none.
        masks: (k, N) bool, the real tokens of the kept rows, and those of their partners that are mixed in; None where
            no mask says.
        partner_labels: class labels of the partners; None where there are none.
    """

    inputs: dict[str, Any]
    mix: Mix
    partner_ids: Tensor | None
    masks: tuple[Tensor, Tensor] | None
    partner_labels: Tensor | None

    @classmethod
    def of(cls, inputs: Mapping[str, Any], mix: Mix, label_name: str = "labels") -> MixedBatch:
        """Mix the rows of a batch.

        Args:
            inputs: a Trainer's inputs; every tensor of n rows is cut to the kept ones, anything else stays.
            mix: of the same rows.
            label_name: which of them are the labels.

        Raises:
            ValueError: an attention mask that is not (n, N).
        """
        tensors = {
            name: value
            for name, value in inputs.items()
            if isinstance(value, Tensor) and value.ndim and len(value) == mix.size
        }
        masks = _masks(tensors.get("attention_mask"), mix)
        labels, ids = tensors.get(label_name), tensors.get("input_ids")
        classes = labels is not None and not labels.is_floating_point()
        mixed = {
            name: value[mix.kept] if name == label_name and classes else _mixed(value, mix, masks)
            for name, value in tensors.items()
        }
        if masks is not None:
            mixed["attention_mask"] = (masks[0] | masks[1]).to(tensors["attention_mask"].dtype)
        return cls(
            {**inputs, **mixed},
            mix,
            None if ids is None else ids[mix.partners],
            masks,
            labels[mix.partners] if labels is not None and classes else None,
        )

    @contextmanager
    def embeddings(self, model: nn.Module) -> Iterator[None]:
        """Within this context the next forward pass of `model` on `inputs` reads the mixed token embeddings.

        Works inside the pass, on what the model's token embedding returns: gradients reach the embeddings of both
        rows, under activation checkpointing and data parallelism too. Without token ids it does nothing.

        Args:
            model: a transformers model, or a PeftModel around one.

        Raises:
            TypeError: a model without a token embedding.
            ValueError: an embedding that returns anything but one vector per token, or that was not called.
        """
        ids, root = self.partner_ids, base_model(model)
        if ids is None:
            yield
            return
        if not isinstance(root, _ReadsTokens):
            raise TypeError(
                f"expected a transformers model with get_input_embeddings, got {type(root).__name__}. Token ids "
                "cannot be averaged, their embeddings can; without them rows cannot be mixed."
            )
        done = False

        def hook(embedding: nn.Module, _: tuple[Any, ...], output: Any) -> Any:
            nonlocal done
            if done:  # whatever else it embeds in the same pass
                return None
            done = True
            if not isinstance(output, Tensor) or output.shape[:-1] != ids.shape:
                shown = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(
                    f"expected embeddings of {tuple(ids.shape)} tokens, got {shown}. Rows are mixed place by place; "
                    "switch off packing or unpadding of sequences."
                )
            masks = None if self.masks is None else (self.masks[0].to(output.device), self.masks[1].to(output.device))
            return _blended(output, called(ids.to(output.device)), self.mix, masks)

        table = root.get_input_embeddings()
        called = table if is_sharded(table) else table.forward  # a call gathers what it needs again
        handle = table.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
        if not done:
            raise ValueError(
                f"expected {type(root).__name__} to embed its tokens with what get_input_embeddings names, but that "
                "module was not called, so nothing was mixed (encoders and decoders that embed for themselves, a "
                "forward pass outside the context). Train this model without mixup."
            )


@runtime_checkable
class _ReadsTokens(Protocol):
    def get_input_embeddings(self) -> nn.Module: ...


def evaluated_logits(student: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """The student's logits without gradients or dropout; every module is left in the mode that it was in.

    Args:
        student: a transformers model, not wrapped for data parallelism.
        inputs: keyword arguments of its forward.
    """
    modes = [(module, module.training) for module in student.modules()]
    student.eval()
    try:
        with torch.no_grad():
            logits: Tensor = student(**inputs)["logits"]
    finally:
        for module, training in modes:
            module.training = training
    return logits


def _masks(mask: Tensor | None, mix: Mix) -> tuple[Tensor, Tensor] | None:
    if mask is None:
        return None
    if mask.ndim != 2:
        raise ValueError(
            f"expected an attention mask (n, N), got {tuple(mask.shape)}: where either of two mixed rows has a token "
            "must be known. Let the data collator give the padding mask."
        )
    return mask[mix.kept].bool(), mask[mix.partners].bool() & (mix.coefficients > 0)[:, None]


def _mixed(tensor: Tensor, mix: Mix, masks: tuple[Tensor, Tensor] | None) -> Tensor:
    """The kept rows of (n, ...): numbers mixed; what there is one of per token, completed by the partners' tokens."""
    kept, partners = tensor[mix.kept], tensor[mix.partners]
    if tensor.is_floating_point() and mix.box is not None and tensor.ndim == 4:
        return _pasted(kept, partners, mix.box)
    if tensor.is_floating_point():
        return _blended(kept, partners, mix, masks)
    if masks is None or kept.shape != masks[0].shape:
        return kept
    return torch.where(masks[1] & ~masks[0], partners, kept)


def _pasted(own: Tensor, other: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    """Images (k, C, H, W) with a piece of the partner's; of another size (the teacher's own) the same piece of it."""
    sides = (own.shape[2], own.shape[2], own.shape[3], own.shape[3])
    top, bottom, left, right = (round(edge * side) for edge, side in zip(box, sides, strict=True))
    pasted = own.clone()
    pasted[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return pasted


def _blended(own: Tensor, other: Tensor, mix: Mix, masks: tuple[Tensor, Tensor] | None) -> Tensor:
    """(1 - c) own + c other, (k, ...), where padding is 0."""
    if masks is not None and own.shape[:2] == masks[0].shape:
        spread = (..., *[None] * (own.ndim - 2))
        own, other = own.masked_fill(~masks[0][spread], 0), other.masked_fill(~masks[1][spread], 0)
    wide = torch.float64 if own.dtype == torch.float64 else torch.float32  # bfloat16 would round the shares
    share = mix.coefficients.to(own.device, wide).view(-1, *[1] * (own.ndim - 1))  # (k, 1, ...)
    return ((1 - share) * own + share * other).to(own.dtype)
