"""Formulas that shape the supervision: other targets, other temperatures, other samples, other weights.

Labels are class numbers of the logits' leading shape `...`; a negative one (-100) is no label.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from hfdistill.functional.reductions import (
    Mask,
    Temperature,
    blanked,
    masked_mean,
    matched,
    softened,
    squares,
    validity,
)

UNCERTAINTIES = ("entropy", "least_confidence", "margin")
"""What unix_scores can measure."""
_LOG_FLOOR = math.log(1e-6)  # of the variance in prime_aware


def conditional_teacher(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: Temperature = 1.0,
    mask: Mask = None,
    soften_labels: bool = True,
) -> Tensor:
    """Conditional teacher: learn from it where it is right, from the label where it is wrong.

    mean over valid rows of -Σ_k q log p_s, p = softmax(logits / T); q = p_t where argmax t = y, else 1 at y. Of equal
    logits the first is the teacher's answer. Meng et al. 2019, arXiv 1904.12399 (T = 1; written from the abstract).
    student, teacher: logits (..., K), K >= 2; labels (...). soften_labels: False takes T = 1 in the rows that learn
    the label, which makes them the plain cross-entropy.
    """
    soft_student, soft_teacher, valid = softened(student, teacher, temperature, _labelled(labels, mask))
    right = (soft_teacher.argmax(-1) == labels)[..., None]
    if not soften_labels:
        soft_student = torch.where(right, soft_student, soft_student * temperature)
    own = labels.clamp(min=0)[..., None]
    target = torch.where(right, soft_teacher.softmax(-1), torch.zeros_like(soft_teacher).scatter(-1, own, 1))
    return masked_mean(-(target * soft_student.log_softmax(-1).masked_fill(target == 0, 0)).sum(-1), valid)


def probability_shift(teacher: Tensor, labels: Tensor) -> Tensor:
    """The teacher's logits with each mistake put right: its answer's and the label's logit change places.

    A permutation of each row, so no probability is lost, at any temperature; right and unlabelled rows stay. Wen et
    al. 2021, arXiv 1911.07471 (knowledge adjustment). teacher: logits (..., K); labels (...). Returns (..., K).
    """
    teacher = blanked(teacher.detach())
    answer = teacher.argmax(-1, keepdim=True)
    own = torch.where(labels[..., None] < 0, answer, labels[..., None])
    moved = teacher.scatter(-1, answer, teacher.gather(-1, own))
    return moved.scatter(-1, own, teacher.gather(-1, answer))


def label_smoothing(teacher: Tensor, labels: Tensor, temperature: Temperature = 1.0, epsilon: float = 0.1) -> Tensor:
    """The teacher's logits with each mistake replaced by the smoothed label.

    softmax(result / T) is 1 - ε at the label and ε / (K - 1) elsewhere in rows where the teacher is wrong; right and
    unlabelled rows stay. Classes at -inf get no share. Wen et al. 2021, arXiv 1911.07471 (knowledge adjustment).
    teacher: logits (..., K); labels (...); epsilon: in [0, 1). Returns (..., K).
    """
    if not 0 <= epsilon < 1:
        raise ValueError(f"expected epsilon in [0, 1), got {epsilon}: the label gets the share 1 - epsilon. Take 0.1.")
    teacher = blanked(teacher.detach())
    wrong = (teacher.argmax(-1) != labels) & (labels >= 0)
    given = (teacher > -math.inf).to(teacher)
    shares = epsilon * given / (given.sum(-1, keepdim=True) - 1).clamp(min=1)
    smoothed = shares.scatter(-1, labels.clamp(min=0)[..., None], 1 - epsilon).log() * temperature
    return torch.where(wrong[..., None], smoothed, teacher)


def flsw_temperature(
    student: Tensor,
    teacher: Tensor,
    temperature: Temperature = 4.0,
    beta: float = 1.0,
    gamma: float = 2.0,
    mask: Mask = None,
) -> Tensor:
    """Dynamic temperature by focal weights: rows where the two models differ get a lower one, so harder targets.

    τ_i = T + β (mean_j w_j - w_i), w = (1 - s·t / ((|s| + 1e-4) (|t| + 1e-4)))^γ, over valid rows: their mean is T.
    Wen et al. 2021, arXiv 1911.07471. student, teacher: logits (..., K). A large β can make τ negative: clamp it.
    Returns (...), without gradient.
    """
    student, teacher, valid = matched(student.detach(), teacher, mask)
    shut_out = student.isinf() | teacher.isinf()
    student, teacher = student.masked_fill(shut_out, 0), teacher.masked_fill(shut_out, 0)
    lengths = (student.norm(dim=-1) + 1e-4) * (teacher.norm(dim=-1) + 1e-4)
    cosine = (student * teacher).sum(-1) / lengths
    return _around(temperature, (1 - cosine).clamp(min=0) ** gamma, beta, valid)  # rounding may exceed 1


def cwsm_temperature(student: Tensor, temperature: Temperature = 4.0, beta: float = 1.0, mask: Mask = None) -> Tensor:
    """Dynamic temperature by confidence: rows where the student is unsure get a lower one, so harder targets.

    τ_i = T + β (mean_j w_j - w_i), w = 1 / (max_k softmax(s)_k + 1e-3), over valid rows: their mean is T. Wen et al.
    2021, arXiv 1911.07471. student: logits (..., K). A large β can make τ negative: clamp it. Returns (...), without
    gradient.
    """
    valid = None if mask is None else validity(mask, student)
    confidence = blanked(student.detach(), valid).softmax(-1).amax(-1)
    return _around(temperature, 1 / (confidence + 1e-3), beta, valid)


def unix_scores(student: Tensor, strategy: str = "entropy") -> Tensor:
    """How unsure the student is of each row: its entropy, 1 - p₁ ("least_confidence"), or p₂ - p₁ ("margin").

    p₁ and p₂ are its two largest probabilities. Xu et al. 2020, arXiv 2012.09413. student: logits (..., K), K >= 2.
    Returns (...), without gradient.
    """
    if strategy not in UNCERTAINTIES:
        raise ValueError(f"expected a strategy among {UNCERTAINTIES}, got {strategy!r}: it decides what is taught.")
    if student.shape[-1] < 2:
        raise ValueError("expected at least 2 classes, got 1: of a single one no model is ever unsure.")
    logarithms = blanked(student.detach()).log_softmax(-1)
    probabilities = logarithms.exp()
    if strategy == "entropy":
        return -(probabilities * logarithms.masked_fill(probabilities == 0, 0)).sum(-1)
    first, second = probabilities.topk(2, dim=-1).values.unbind(-1)
    return 1 - first if strategy == "least_confidence" else second - first


def unix_mask(rows: int, begin: int, sharpness: float = 10.0) -> Tensor:
    """How much of another row each rank is mixed with: little for the most uncertain, much for the certain.

    c_r = sigmoid(w (r / n - (2b - 1) / 2n)) for the ranks r = 0 .. n - 1, most uncertain first: above ½ from r = b on.
    Xu et al. 2020, arXiv 2012.09413. rows: n; begin: b; sharpness: w > 0. Returns (n,), float64.
    """
    ranks = torch.arange(rows, dtype=torch.float64)
    return torch.sigmoid(sharpness * (ranks / rows - (2 * begin - 1) / (2 * rows)))


def unix_mix(
    inputs: Tensor,
    student: Tensor,
    partners: Tensor,
    share: float,
    kept: int,
    begin: int,
    sharpness: float = 10.0,
    strategy: str = "entropy",
) -> tuple[Tensor, Tensor, Tensor]:
    """Uncertainty-aware mixup: keep the rows that the student is least sure of, mixed the less the less sure it is.

    x̃_r = (1 - λ c_r) x_order(r) + λ c_r x_partner(r) for the ranks r < k; see unix_scores and unix_mask. Xu et al.
    2020, arXiv 2012.09413. inputs: (n, ...); student: logits (n, K); partners: (n,) row numbers, a permutation;
    share: λ in [0, 1]; kept: k. Returns x̃ (k, ...), order (k,) and λ c (k,).
    """
    order = unix_scores(student, strategy).argsort(descending=True, stable=True)[:kept]
    coefficients = share * unix_mask(len(inputs), begin, sharpness)[:kept].to(inputs)
    weights = coefficients.view(-1, *[1] * (inputs.ndim - 1))  # (k, 1, ...)
    return (1 - weights) * inputs[order] + weights * inputs[partners[:kept]], order, coefficients


def mixed_cross_entropy(
    student: Tensor, labels: Tensor, partner_labels: Tensor, coefficients: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of mixed rows: with both rows' labels, each as much as its row is in the mixture.

    Σ [(1 - c) CE(s, y) + c CE(s, y')] / Σ [(1 - c) + c], over the labels that are there; CE with smoothing ε is
    -(1 - ε) log p_y - ε mean_k log p_k. Zhang et al. 2018, arXiv 1710.09412; Xu et al. 2020, arXiv 2012.09413.
    student: logits (k, ..., K); labels, partner_labels: (k, ...); coefficients: c (k,), for mixup 1 - λ; smoothing:
    ε in [0, 1).
    """
    weight = coefficients.view(-1, *[1] * (labels.ndim - 1)).expand(labels.shape)  # (k, ...)
    logarithms = blanked(student, (labels >= 0) | (partner_labels >= 0)).log_softmax(-1)
    total, count = logarithms.new_zeros(()), logarithms.new_zeros(())
    for answers, share in ((labels, 1 - weight), (partner_labels, weight)):
        share = (share * (answers >= 0)).to(logarithms)
        picked = logarithms.gather(-1, answers.clamp(min=0)[..., None])[..., 0]
        if smoothing:
            picked = (1 - smoothing) * picked + smoothing * logarithms.mean(-1)
        total, count = total - (share * picked.masked_fill(share == 0, 0)).sum(), count + share.sum()
    return total / count.clamp(min=1)


def triplet(
    teacher: Tensor, student_positive: Tensor, student_negative: Tensor, margin: float = 5.0, mask: Mask = None
) -> Tensor:
    """Triplets of logits: the teacher's anchor attracts the student's own, repels its logits of another class.

    mean over valid rows of max(0, |t(x) - s(x)| - |t(x) - s(x')| + margin), x' of another class than x. Oki et al.
    2020, arXiv 2004.08116. All: logits (..., K); margin: > 0, in units of the logits. 1e-6 in the norm, as in the
    authors' code, keeps the gradient finite.
    """
    (positive, anchor, valid), (negative, _, _) = (
        matched(side, teacher, mask) for side in (student_positive, student_negative)
    )
    near, far = (torch.linalg.vector_norm(_gap(anchor, side) + 1e-6, dim=-1) for side in (positive, negative))
    return masked_mean((near - far + margin).clamp(min=0), valid)


def prime_aware(student: Tensor, teacher: Tensor, log_variance: Tensor, mask: Mask = None) -> Tensor:
    """Prime-aware regression: the squared difference, weighed by a variance that the student itself predicts.

    mean over valid rows and D of (t - s)² / (1e-6 + exp(v)) + v, v the log-variance: hard samples count less, and the
    last term keeps v from growing. Zhang et al. 2020, ECCV, paper 3317. All: (..., D). May be
    negative; least at v = log (t - s)².
    """
    student, teacher, valid = matched(student, teacher, mask)
    log_variance, _, _ = matched(log_variance, teacher, mask)
    weight = (-torch.logaddexp(log_variance, log_variance.new_full((), _LOG_FLOOR))).exp()  # exp(v) may overflow
    return masked_mean((squares(student, teacher) * weight + log_variance).mean(-1), valid)


def discrimination(teacher_scores: Tensor, student_scores: Tensor, mask: Mask = None) -> Tensor:
    """What a discriminator learns: to tell the teacher's outputs from the student's.

    mean over valid rows of -log D(teacher) - log(1 - D(student)), D = sigmoid(score). Goodfellow et al. 2014, arXiv
    1406.2661. Scores: (...), one per row; both sides' gradients flow, since the discriminator is what is trained.
    """
    valid = None if mask is None else mask.bool()
    scores = blanked(teacher_scores, valid), blanked(student_scores, valid)
    return masked_mean(softplus(-scores[0]) + softplus(scores[1]), valid)


def deception(student_scores: Tensor, mask: Mask = None) -> Tensor:
    """What a student learns from a discriminator: to be taken for the teacher.

    mean over valid rows of -log D(student), D = sigmoid(score). Goodfellow et al. 2014, arXiv 1406.2661 (the form
    that does not saturate). student_scores: (...).
    """
    valid = None if mask is None else mask.bool()
    return masked_mean(softplus(-blanked(student_scores, valid)), valid)


def _labelled(labels: Tensor, mask: Mask) -> Tensor:
    """Which rows are labelled, and valid."""
    return labels >= 0 if mask is None else (labels >= 0) & mask.bool()


def _around(temperature: Temperature, doubt: Tensor, beta: float, valid: Mask) -> Tensor:
    """The temperature, lower for rows of more than the mean doubt, higher for those of less."""
    return temperature + (masked_mean(doubt, valid) - doubt) * beta


def _gap(first: Tensor, second: Tensor) -> Tensor:
    """The difference, 0 where both hold the same infinity."""
    return (first - second).masked_fill(first.isinf() & (first == second), 0)
