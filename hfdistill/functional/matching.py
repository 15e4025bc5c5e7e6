"""Formulas that learn what to match: attention over layers, weights of channels, features of auxiliary classifiers."""

import math

import torch
from torch import Tensor

from hfdistill.functional.reductions import Mask, blanked, masked_mean, matched, product, validity


def energy(states: Tensor, mask: Mask = None) -> Tensor:
    """Where a layer is active, whatever its width: the mean square of each token.

    e_i = mean_d x_id²; as a unit vector over the tokens it is the map that attended_matching compares. Ji et al. 2021
    (AFD), arXiv 2102.02973. states: (B, N, D), of either side; mask: (B, N), masked tokens are 0. Returns (B, N).
    """
    valid = validity(mask, states)
    return blanked(states, None if mask is None else valid).square().mean(-1)


def layer_attention(query: Tensor, key: Tensor, teacher_position: Tensor, student_position: Tensor) -> Tensor:
    """How much each teacher layer looks at each student layer: positive, 1 in sum over the student's layers.

    softmax over s of (<key_ts, query_t> + <p_t, p_s>) / √Q. Ji et al. 2021 (AFD), arXiv 2102.02973. query: made of the
    T teacher layers by a trainable part, (B, T, Q); key: of the S student layers, (B, S, T, Q); teacher_position:
    (T, Q); student_position: (S, Q), both trainable. Returns (B, T, S). Nothing is detached here.
    """
    layers, students, width = query.shape[1], student_position.shape[0], query.shape[-1]
    if key.shape != (len(query), students, layers, width) or teacher_position.shape != (layers, width):
        raise ValueError(
            f"expected query (B, T, Q), key (B, S, T, Q), positions (T, Q) and (S, Q), got {[*query.shape]}, "
            f"{[*key.shape]}, {[*teacher_position.shape]} and {[*student_position.shape]}: each teacher layer asks "
            "every student layer."
        )
    query, key, teacher_position, student_position = (
        blanked(side) for side in (query, key, teacher_position, student_position)
    )
    scores = (key * query[:, None]).sum(-1).transpose(1, 2)  # (B, T, S)
    return ((scores + product(teacher_position, student_position.T)) / math.sqrt(width)).softmax(-1)


def attended_matching(student: Tensor, teacher: Tensor, attention: Tensor, mask: Mask = None) -> Tensor:
    """Maps of all student layers against those of all teacher layers, each pair as much as attention says.

    Σ_t mean over samples with a valid token of Σ_s α_ts · mean over valid tokens of (v_s - v_t)². Ji et al. 2021
    (AFD), arXiv 2102.02973. student: maps (T, S, B, N), or (1, S, B, N) where all teacher layers have the same places;
    teacher: (T, B, N); attention α: (B, T, S), which learns; mask: (B, N).
    """
    if student.ndim != 4 or teacher.ndim != 3 or student.shape[0] not in (1, len(teacher)):
        raise ValueError(
            f"expected student maps (T or 1, S, B, N) and teacher maps (T, B, N), got {[*student.shape]} and "
            f"{[*teacher.shape]}: every student layer is compared with every teacher layer."
        )
    layers, students, batch = len(teacher), student.shape[1], teacher.shape[1]
    if student.shape[2:] != teacher.shape[1:] or attention.shape != (batch, layers, students):
        raise ValueError(
            f"expected maps of the same samples and places and an attention of {[batch, layers, students]}, got "
            f"{[*student.shape]}, {[*teacher.shape]} and {[*attention.shape]}. Pool the larger maps first."
        )
    valid = validity(mask, teacher[0, ..., None])  # (B, N)
    student, teacher = blanked(student, _spread(valid, student)), blanked(teacher.detach(), _spread(valid, teacher))
    gaps = (student - teacher[:, None]).square().sum(-1) / valid.sum(1).clamp(min=1)  # (T, S, B)
    real = valid.any(1)  # (B,)
    attention = blanked(attention, _spread(real[:, None, None], attention))
    return masked_mean((attention * gaps.permute(2, 0, 1)).sum((1, 2)), real)


def _spread(valid: Tensor, tensor: Tensor) -> Tensor:
    return valid.expand(tensor.shape)


def attentive_matching(
    student: Tensor, teacher: Tensor, attention: Tensor, mask: Mask = None, epsilon: float = 1e-6
) -> Tensor:
    """Channels as unit vectors over the tokens, compared one by one, each as much as attention says.

    mean over samples with a valid token of Σ_d ρ_d · mean over valid tokens of (ŝ_id - t̂_id)², x̂ = x / (|x| + ε), the
    norm over the valid tokens of one channel. Wang et al. 2020 (AFDS, its distillation part),
    https://openreview.net/forum?id=ryxyCeHtPB. student, teacher: (B, N, D); attention ρ: (B, D), which learns and
    should sum to 1; mask: (B, N).
    """
    valid = validity(mask, student)
    student, teacher, _ = matched(student, teacher, None if mask is None else valid)
    if attention.shape != (student.shape[0], student.shape[-1]):
        raise ValueError(
            f"expected an attention (B, D) for states {[*student.shape]}, got {[*attention.shape]}: one weight for "
            "each channel of each sample."
        )
    gaps = (_unit_channels(student, epsilon) - _unit_channels(teacher, epsilon)).square().sum(1)  # (B, D)
    real = valid.any(1)  # (B,)
    rows = (blanked(attention, real) * gaps).sum(-1) / valid.sum(1).clamp(min=1)
    return masked_mean(rows, real)


def _unit_channels(states: Tensor, epsilon: float) -> Tensor:
    norm = _frobenius(states, (1,))[:, None]  # (B, 1, D)
    return states / torch.where(norm > 0, norm + epsilon, 1)  # an empty channel stays 0, with a bounded gradient


def _frobenius(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    """√Σ x² over some axes, with gradients of any order that are 0 where all x are."""
    total = tensor.square().sum(axes)
    return torch.where(total > 0, total, 1).sqrt().masked_fill(total == 0, 0)


def task_oriented(
    student: Tensor, teacher: Tensor, maps: Tensor, alpha: float = 0.05, beta: float = 0.03, mask: Mask = None
) -> Tensor:
    """Features of auxiliary classifiers, the student's brought to the teacher's by maps that stay near orthogonal.

    Σ_j [α ‖s_j - t_j‖_F + β (‖W_j W_jᵀ - I‖_F + ‖W_jᵀ W_j - I‖_F)], the norms not squared, the first over all valid
    rows of the batch: it grows with √B. Zhang et al. 2020 (TOFD), NeurIPS, authors' code. student: J features already
    mapped, s_j = W_j f_j, (J, B, D_teacher); teacher: (J, B, D_teacher); maps W: (J, D_teacher, D_student); mask:
    (B,). Without a valid row the whole is 0.
    """
    if student.ndim != 3 or maps.ndim != 3 or len(maps) != len(student):
        raise ValueError(
            f"expected features (J, B, D_teacher) and maps (J, D_teacher, D_student), got {[*student.shape]} and "
            f"{[*maps.shape]}: each feature has a map of its own."
        )
    valid = validity(mask, student[0])  # (B,)
    student, teacher, _ = matched(student, teacher, valid.expand(student.shape[:2]))
    gaps = _frobenius(student - teacher, (1, 2))  # (J,)
    maps = blanked(maps)
    tall, wide = product(maps, maps.transpose(1, 2)), product(maps.transpose(1, 2), maps)
    strains = [_frobenius(gram - torch.eye(gram.shape[-1]).to(gram), (1, 2)) for gram in (tall, wide)]
    return (alpha * gaps + beta * (strains[0] + strains[1])).sum() * valid.any()
