"""Formulas of attention knowledge: scores and probabilities of the heads, relations between tokens' vectors."""

import math

import torch
from torch import Tensor

from hfdistill.functional.reductions import (
    Mask,
    blanked,
    divergence,
    masked_mean,
    matched,
    number,
    product,
    squared_distance,
    validity,
)

Vectors = tuple[Tensor, Tensor]


def _pairs(student: Tensor, teacher: Tensor, mask: Mask = None, allowed: Mask = None) -> Mask:
    if student.ndim != 4 or student.shape != teacher.shape:
        raise ValueError(
            f"expected (B, H, N, N) on both sides, got {[*student.shape]} (student) and {[*teacher.shape]} "
            "(teacher). Heads are compared one by one. For other head counts use relation_kl, which is free of them."
        )
    if mask is None and allowed is None:
        return None
    valid = validity(mask, student[:, 0])
    pairs = valid[:, None, :, None] & valid[:, None, None, :]  # (B, 1, N, N)
    try:
        return pairs if allowed is None else pairs & allowed.bool().expand_as(pairs)
    except RuntimeError as error:
        raise ValueError(f"expected `allowed` to spread to (B, 1, N, N), as (N, N) does: {error}") from error


def pair_count(maps: Tensor, mask: Mask = None, allowed: Mask = None) -> Tensor | int:
    """How many entries of the maps (B, H, N, N) a mean over pairs takes; the rest as in attention_score_mse."""
    pairs = _pairs(maps, maps, mask, allowed)
    return maps.numel() if pairs is None else number(pairs, maps)


def query_count(maps: Tensor, mask: Mask = None, allowed: Mask = None) -> Tensor | int:
    """How many distributions over keys, of maps (B, H, N, N), a mean over queries takes: those with a valid key."""
    pairs = _pairs(maps, maps, mask, allowed)
    return maps[..., 0].numel() if pairs is None else number(pairs.any(-1), maps[..., 0])


def attention_score_mse(student: Tensor, teacher: Tensor, mask: Mask = None, allowed: Mask = None) -> Tensor:
    """Attention scores before the softmax, over real tokens only: longer padding changes nothing.

    mean over heads and valid (query, key) pairs of (s - t)². Jiao et al. 2020 (TinyBERT), arXiv 1909.10351.
    student, teacher: (B, H, N, N); mask: (B, N), a pair needs both; allowed: True where the attention pattern (causal,
    sliding window) permits the pair, (N, N) or whatever else spreads to (B, 1, N, N).
    """
    pairs = _pairs(student, teacher, mask, allowed)
    total = squared_distance(blanked(student, pairs), blanked(teacher.detach(), pairs))  # 0 where both are blank
    return total / (max(student.numel(), 1) if pairs is None else number(pairs, student).clamp(min=1))


def attention_score_mse_tinybert(student: Tensor, teacher: Tensor) -> Tensor:
    """TinyBERT's scores as its reference code compares them, for parity: the value depends on the padding.

    mean over the whole padded (B, H, N, N) of (s' - t')², an entry <= -100 read as 0 on its side. Jiao et al. 2020,
    arXiv 1909.10351, authors' code. student, teacher: scores (B, H, N, N) with the additive mask in them.
    """
    _pairs(student, teacher)
    total = squared_distance(blanked(student, student > -100), blanked(teacher.detach(), teacher > -100))
    return total / max(student.numel(), 1)


def attention_probability_kl(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """Attention maps after the softmax, as distributions over the keys.

    mean over heads and valid queries of Σ_keys t (log t - log s), 0 log 0 = 0, an s of 0 (underflow) at least the
    smallest normal number. Wang et al. 2020 (MiniLM), arXiv 2002.10957. Both: (B, H, N, N); mask: (B, N).
    """
    pairs = _pairs(student, teacher, mask)
    student, teacher = blanked(student, pairs), blanked(teacher.detach(), pairs)
    log_student = student.clamp(min=torch.finfo(student.dtype).tiny).log()
    rows = (torch.xlogy(teacher, teacher) - teacher * log_student).sum(-1)  # (B, H, N)
    return masked_mean(rows, None if mask is None else mask.bool()[:, None])


def attention_probability_mse(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """Attention maps after the softmax, entry by entry: formula, source and shapes of attention_score_mse."""
    return attention_score_mse(student, teacher, mask)


def _relation_scores(left: Tensor, right: Tensor, valid: Mask) -> Tensor:
    if left.shape != right.shape:
        raise ValueError(
            f"expected two (B, H, N, d) of one shape, got {[*left.shape]} and {[*right.shape]}: a relation is the "
            "product of a model's own vectors, such as its queries and keys. Pass both from one model and layer."
        )
    left, right = (blanked(side, None if valid is None else valid[:, None]) for side in (left, right))
    scores = product(left / math.sqrt(left.shape[-1]), right.transpose(-1, -2))  # (B, H, N, N)
    if valid is None:
        return scores
    return scores.masked_fill(~valid[:, None, None], torch.finfo(scores.dtype).min)  # -inf: NaN if all are masked


def relation_pieces(vectors: Tensor, heads: int) -> Tensor:
    """Vectors (B, N, D) in `heads` pieces of equal width, (B, H, N, D / H); ValueError where D is not divisible."""
    if vectors.ndim != 3 or heads < 1 or vectors.shape[-1] % heads:
        raise ValueError(
            f"expected (B, N, D) with D divisible by heads={heads}, got {[*vectors.shape]}: each relation head takes "
            "D / heads of the width. Choose heads that divide both models' D."
        )
    pieces = vectors.reshape(*vectors.shape[:2], heads, vectors.shape[-1] // heads)
    return pieces.transpose(1, 2)  # (B, H, N, D / H)


def relation_kl_of_pieces(student: Vectors, teacher: Vectors, mask: Mask = None) -> Tensor:
    """relation_kl of left and right vectors that are cut already, (B, H, N, d_s) and (B, H, N, d_t)."""
    ours, theirs = student, (teacher[0].detach(), teacher[1].detach())
    valid = validity(mask, *(side[:, 0] for side in (*ours, *theirs)))
    seen = None if mask is None else valid
    own, target, _ = matched(_relation_scores(*ours, seen), _relation_scores(*theirs, seen))
    rows = divergence(target, own).mean(1) * valid  # (B, N)
    return masked_mean(rows.sum(1) / valid.sum(1).clamp(min=1), valid.any(1))


def relation_kl(
    student_left: Tensor,
    student_right: Tensor,
    teacher_left: Tensor,
    teacher_right: Tensor,
    heads: int,
    mask: Mask = None,
) -> Tensor:
    """Self-attention relations between tokens, free of both widths and head counts.

    R(X, Y) = softmax(X Yᵀ / √d) over valid keys, in each of `heads` pieces of width d; mean over samples with a valid
    token of 1/(heads · n_b) Σ_heads Σ_queries KL(R_t || R_s), n_b their valid tokens. Wang et al. 2021 (MiniLMv2),
    arXiv 2012.15828. student_*: (B, N, D_s); teacher_*: (B, N, D_t); heads: divides both widths; mask: (B, N).
    """
    student = relation_pieces(student_left, heads), relation_pieces(student_right, heads)
    teacher = relation_pieces(teacher_left, heads), relation_pieces(teacher_right, heads)
    return relation_kl_of_pieces(student, teacher, mask)
