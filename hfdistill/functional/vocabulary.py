"""Response knowledge over a large vocabulary, from features and output heads: no tensor of all tokens and all words.

Logits are made, compared and turned into gradients for a chunk of tokens at a time, and never kept. What is compared
in a chunk is any formula over logits; its gradient is taken on the spot, since the sum of chunks is a scalar whose
gradient is the sum of theirs. Liger Kernel (Hsu et al. 2024, arXiv 2410.10989) does so for its losses.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hfdistill.functional.reductions import Mask, blanked, validity

Divergence = Callable[[Tensor, Tensor], Tensor]
"""Mean over the rows of logits (P, V) of the student and (P, V) of the teacher, a scalar: `reverse_kl`, say."""

CHUNK_ELEMENTS = 2**24
"""Logits of a chunk: 64 MB in float32. Smaller ones read both heads more often than they save."""


class OutputHead(NamedTuple):
    """The last, linear step of a language model, not yet taken: logits = features @ weight.T + bias.

    Attributes:
        features: (..., D), (B, N, D) of a model.
        weight: (V, D).
        bias: (V,), or None.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def changed(self, change: Callable[[Tensor], Tensor]) -> "OutputHead":
        """The same with each of its tensors changed."""
        bias = None if self.bias is None else change(self.bias)
        return OutputHead(change(self.features), change(self.weight), bias)


def vocabulary_divergence(
    student: OutputHead, teacher: OutputHead, divergence: Divergence, mask: Mask = None, chunk: int | None = None
) -> Tensor:
    """A divergence of next-token distributions over the whole vocabulary, in chunks of tokens.

    divergence(h_s W_s^T + b_s, h_t W_t^T + b_t) over the valid tokens, the same value and gradients as from whole
    logits up to rounding. Products are made in the precision of the heads, or of autocast; what the divergence makes
    of them is its own matter. Masked tokens cost nothing: they are left out before anything is computed.

    student, teacher: heads over one vocabulary, features (..., D_s) and (..., D_t). divergence: a mean over rows.
    chunk: tokens at a time; None: as many as make CHUNK_ELEMENTS logits.
    """
    keep = validity(mask, student.features, teacher.features)
    if student.weight.shape[0] != teacher.weight.shape[0]:
        raise ValueError(
            f"expected heads over one vocabulary, got {student.weight.shape[0]} (student) and "
            f"{teacher.weight.shape[0]} (teacher) words: words are compared one to one. Resize one of the heads "
            "(resize_token_embeddings)."
        )
    places = None if mask is None else keep
    ours, theirs = _chosen(student, places), _chosen(teacher.changed(Tensor.detach), places)

    def formula(logits: Tensor, rows: slice) -> Tensor:
        # there, if the teacher lies elsewhere: a chunk of logits is less to move than its head
        return divergence(logits, _logits(theirs, rows).to(logits.device))

    return _mean_over_chunks(ours, formula, chunk)


def vocabulary_cross_entropy(
    head: OutputHead, labels: Tensor, label_smoothing: float = 0.0, chunk: int | None = None, ignored: int = -100
) -> Tensor:
    """Cross-entropy of labels over a large vocabulary, in chunks of tokens.

    mean over labels y that count of -log softmax(h W^T + b)_y, the same value and gradients as from whole logits.

    labels: (...) of the features' leading shape. label_smoothing: share of the target spread over all words, 0 to 1.
    chunk: see vocabulary_divergence. ignored: the label that does not count.
    """
    keep = validity(labels != ignored, head.features)
    targets = labels[keep].long()  # (P,)

    def formula(logits: Tensor, rows: slice) -> Tensor:
        return F.cross_entropy(blanked(logits), targets[rows], label_smoothing=label_smoothing)

    return _mean_over_chunks(_chosen(head, keep), formula, chunk)


def _chosen(head: OutputHead, places: Tensor | None) -> OutputHead:
    """The head over the places that count, features (P, D), in the precision that the product is to have."""
    # their number decides how many chunks there are: for it the device waits, once
    features = head.features.flatten(0, -2) if places is None else head.features[places.to(head.features.device)]
    chosen, device = head._replace(features=features), features.device.type
    if not torch.is_autocast_enabled(device):
        return chosen
    half = torch.get_autocast_dtype(device)  # once for all chunks; float64 stays, as under autocast everywhere
    return chosen.changed(lambda part: part if part.dtype == torch.float64 else part.to(half))


def _logits(head: OutputHead, rows: slice) -> Tensor:
    return F.linear(head.features[rows], head.weight, head.bias)


def _mean_over_chunks(head: OutputHead, formula: Callable[[Tensor, slice], Tensor], chunk: int | None) -> Tensor:
    """The mean of a formula over rows of logits, (P, V), of which only `chunk` rows are made at a time."""
    if chunk is not None and chunk < 1:
        raise ValueError(f"expected chunk >= 1, got {chunk}: so many tokens are compared at a time. None chooses.")
    rows = max(1, CHUNK_ELEMENTS // head.weight.shape[0]) if chunk is None else chunk
    if not torch.is_grad_enabled():  # a Function is not told, and would work out gradients that nobody takes
        head = head.changed(Tensor.detach)
    with torch.autocast(head.features.device.type, enabled=False):  # what it is to do has been done
        value: Tensor = _MeanOverChunks.apply(*head, formula, rows)  # type: ignore[no-untyped-call]
    return value


class _MeanOverChunks(torch.autograd.Function):
    """Forward finds value and gradients chunk by chunk; backward scales the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        formula: Callable[[Tensor, slice], Tensor],
        chunk: int,
    ) -> Tensor:
        head = OutputHead(features, weight, bias)
        wide = torch.float64 if features.dtype == torch.float64 else torch.float32
        value = features.new_zeros((), dtype=wide)
        # features have a gradient row by row; the head's is a sum over chunks, in which half precision would lose
        sums = [
            torch.zeros_like(part, dtype=own) if part is not None and needed else None
            for part, own, needed in zip(head, (features.dtype, wide, wide), ctx.needs_input_grad[:3], strict=True)
        ]
        for start in range(0, len(features), chunk):
            value += _add_chunk(head, slice(start, start + chunk), formula, sums)
        ctx.save_for_backward(*(None if own is None else own.to(features.dtype) for own in sums))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if own is None else own * slope.to(own.dtype) for own in ctx.saved_tensors), None, None


def _add_chunk(
    head: OutputHead, rows: slice, formula: Callable[[Tensor, slice], Tensor], sums: list[Tensor | None]
) -> Tensor:
    """What one chunk adds to the mean, and, in place, to the gradients; a function, so that its logits are let go."""
    logits = _logits(head, rows).requires_grad_(any(own is not None for own in sums))
    with torch.enable_grad():
        value = formula(logits, rows) * (len(logits) / len(head.features))
    if not logits.requires_grad:
        return value.detach()
    (slopes,) = torch.autograd.grad(value, logits)
    features, weight, bias = sums
    if features is not None:
        torch.mm(slopes, head.weight, out=features[rows])
    if weight is not None and weight.dtype == slopes.dtype:
        weight.addmm_(slopes.T, head.features[rows])
    elif weight is not None:
        weight += slopes.T @ head.features[rows]
    if bias is not None:
        bias += slopes.sum(0)
    return value.detach()
