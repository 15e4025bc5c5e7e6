"""Formulas of contrast: near one's own teacher vector, far from those of others.

The others are given (cos_nce), the other rows of the batch (*_in_batch), or rows of a memory that holds one vector for
each row of the training set. Contrast with a memory is made of parts: similarities with candidates, the constant that
makes them probabilities, the loss of both, and what is remembered afterwards.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hfdistill.functional.reductions import Mask, blanked, masked_mean, matched, product, unit, validity

_EPSILON = 1e-7  # of CRD, added to a denominator
_OFFSET = 1e-6  # of CRCD, added to each coordinate of a difference


def cos_nce(
    student: Tensor, teacher: Tensor, negatives: Tensor, negative_mask: Mask = None, mask: Mask = None
) -> Tensor:
    """Contrast by angle: near one's own teacher vector, far from those of other samples; between 0 and 4.

    mean over valid rows of Σ_i [2 - (g(n_i, s) - g(t, s))] / 2M + g(t, s), g = 1 - cos, over the row's M valid
    negatives; a row without any: g(t, s). Fu et al. 2021 (LRC-BERT), arXiv 2012.07335. student, teacher: (B, D);
    negatives: teacher vectors (B, M, D), M >= 0; negative_mask: (B, M); mask: (B,).
    """
    student, teacher, valid = matched(student, teacher, mask)
    if negatives.ndim != 3 or (negatives.shape[0], negatives.shape[2]) != student.shape:
        raise ValueError(
            f"expected negatives (B, M, D) for rows {[*student.shape]}, got {[*negatives.shape]}. Expand shared ones."
        )
    real, student = validity(negative_mask, negatives), unit(student)
    near = 1 - (student * unit(teacher)).sum(-1)  # (B,)
    far = 1 - (unit(blanked(negatives.detach(), real)) * student[:, None]).sum(-1)  # (B, M)
    return masked_mean(_margins(near, far, real), valid)


def cos_nce_in_batch(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """Contrast by angle with the other valid rows of the batch: cos_nce without copies of them, (B, B) numbers.

    Fu et al. 2021 (LRC-BERT), arXiv 2012.07335. student, teacher: (B, D); mask: (B,).
    """
    student, teacher, _ = matched(student, teacher, mask)
    valid = validity(mask, student)
    distances = 1 - product(unit(student), unit(teacher).T)  # (B, B)
    others = valid & ~torch.eye(len(valid), dtype=torch.bool, device=valid.device)  # (B, B)
    return masked_mean(_margins(distances.diagonal(), distances, others), valid)


def in_batch_contrast(student: Tensor, teacher: Tensor, temperature: float = 0.1, mask: Mask = None) -> Tensor:
    """InfoNCE: among the teacher vectors of the batch the student's finds its own.

    mean over valid rows i of -log softmax_j(cos(s_i, t_j) / T) at j = i, over the valid rows j. One row alone: 0. Van
    den Oord et al. 2018 (CPC), arXiv 1807.03748. student, teacher: (B, D); mask: (B,). The teacher's vectors may come
    from a layer that is trained: they are not detached.
    """
    if student.shape != teacher.shape:
        matched(student, teacher)  # says what is wrong
    valid = validity(mask, student)
    student, teacher = (unit(blanked(side, valid)) for side in (student, teacher))
    similarities = product(student, teacher.T) / _above_zero(temperature)  # (B, B)
    itself = torch.eye(len(valid), dtype=torch.bool, device=valid.device)
    # a row that does not count keeps itself: without any candidate its softmax would be NaN, backward too
    similarities = similarities.masked_fill(~(valid | itself), -torch.inf)
    return masked_mean(-similarities.log_softmax(-1).diagonal(), valid)


def memory_similarity(vectors: Tensor, memory: Tensor, index: Tensor, temperature: float = 0.07) -> Tensor:
    """Similarities of each row with its candidates from a memory: <M[index], v> / T.

    Tian et al. 2020 (CRD), arXiv 1910.10699. vectors: (B, D) of unit length, with a gradient on either side; memory:
    the other side's (rows, D), without one; index: (B, K + 1) rows of the memory, the positive first. Returns
    (B, K + 1). The memory may change before the backward pass.
    """
    vectors, memory = blanked(vectors), blanked(memory.detach())
    if index.shape[1] * memory.shape[1] < len(memory):  # copies of the candidates are the smaller detour
        return product(memory[index], vectors[:, :, None]).squeeze(-1) / _above_zero(temperature)  # (B, K + 1)
    return product(vectors, memory.clone().T).gather(1, index) / _above_zero(temperature)  # of (B, rows)


def relation_similarity(vectors: Tensor, memory: Tensor, index: Tensor, temperature: float = 0.05) -> Tensor:
    """Similarities of relations: where a row, and where its candidates lie, seen from an anchor.

    <unit(M[index_ik] - a_j + 1e-6), unit(v_i - a_j + 1e-6)> / T, with the anchors a_j = M[index_j0], the positives of
    the batch. Zhu et al. 2021 (CRCD), arXiv 2103.16367. Shapes are those of memory_similarity; returns (B, B, K + 1):
    row, anchor, candidate. Nothing of size B · B · K · D is made. A candidate that is the anchor has no direction but
    that of the 1e-6; a row's own anchor has only such positives, and is best left out of the mean.
    """
    vectors, memory = blanked(vectors), blanked(memory.detach())
    candidates, anchors = memory[index], memory[index[:, 0]]  # (B, K + 1, D), (B, D)
    relations = unit(vectors[:, None] - anchors + _OFFSET)  # (B, B, D)
    anchors = anchors - _OFFSET
    along = product(relations, candidates.transpose(1, 2)) - (relations * anchors).sum(-1, keepdim=True)
    # exact distances: those from squares and products lose near neighbours to rounding
    distances = torch.cdist(anchors, candidates, compute_mode="donot_use_mm_for_euclid_dist")  # (B, B, K + 1)
    cosines = (along / distances.clamp(min=1e-12)).clamp(-1, 1)
    itself = index[:, None] == index[:, :1]  # (B, B, K + 1)
    offsets = relations.sum(-1, keepdim=True) / math.sqrt(vectors.shape[1])  # (B, B, 1), the cosine with (1, ..., 1)
    return torch.where(itself, offsets, cosines) / _above_zero(temperature)


def log_constant(similarities: Tensor, rows: int, mask: Mask = None) -> Tensor:
    """Logarithm of the constant Z that makes exp(similarity) / Z a probability among the rows of a memory.

    log(rows · mean over valid rows and candidates of exp(similarity)); -inf where nothing is valid. No gradient. Wu et
    al. 2018, arXiv 1805.01978, as used by CRD, which sets Z once. similarities: (..., K + 1); mask: (...).
    """
    valid = validity(mask, similarities)
    open_ones = blanked(similarities.detach(), valid).masked_fill(~valid[..., None], -torch.inf)
    count = (valid.sum().clamp(min=1) * similarities.shape[-1]).to(open_ones)
    return open_ones.flatten().logsumexp(0) - count.log() + math.log(rows)


def noise_contrast(similarities: Tensor, constant: Tensor | float, rows: int, mask: Mask = None) -> Tensor:
    """Noise-contrastive estimation: tell the positive from K candidates drawn at random from a memory.

    With p = exp(similarity - constant), c = K / rows and e = 1e-7, mean over valid rows of -log(p_0 / (p_0 + c + e))
    - Σ_k log(c / (p_k + c + e)). Gutmann and Hyvärinen 2010, in the form of Tian et al. 2020 (CRD), arXiv 1910.10699.
    similarities: (..., K + 1), the positive first; constant: log Z; rows: of the memory; mask: (...).
    """
    valid = validity(mask, similarities)
    noise = (similarities.shape[-1] - 1) / rows  # c
    odds = blanked(similarities, valid) - constant - math.log(noise + _EPSILON)
    told = logsigmoid(odds[..., 0]) + logsigmoid(-odds[..., 1:]).sum(-1)
    offset = (similarities.shape[-1] - 1) * math.log1p(_EPSILON / noise) if noise else 0.0  # of e in the numerators
    return masked_mean(offset - told, valid)


def remembered(memory: Tensor, vectors: Tensor, momentum: float = 0.5) -> Tensor:
    """What a memory keeps of the rows just seen: momentum M + (1 - momentum) v, scaled to length 1; no gradient.

    Tian et al. 2020 (CRD), arXiv 1910.10699. memory, vectors: (B, D), of the same rows.
    """
    memory, vectors, _ = matched(memory.detach(), vectors)
    return unit(momentum * memory + (1 - momentum) * vectors)


def _margins(near: Tensor, far: Tensor, real: Tensor) -> Tensor:
    """COS-NCE of each row, of its distance to its own (B,) and to others (B, M), of which the `real` ones count."""
    margins = (1 - (far - near[:, None]) / 2).masked_fill(~real, 0).sum(-1) / real.sum(-1).clamp(min=1)
    return margins + near


def _above_zero(temperature: float) -> float:
    if not 0 < temperature < math.inf:
        raise ValueError(f"expected a temperature above 0, got {temperature}: it divides cosines. Take 0.05 to 0.5.")
    return temperature
