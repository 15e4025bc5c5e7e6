"""Formulas of response knowledge beyond the KL: bounded divergences, few of the classes, another vocabulary."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from hfdistill.functional.reductions import (
    Mask,
    Temperature,
    blanked,
    divergence,
    masked_mean,
    softened,
    validity,
)

_LEAST_LOG = -1e30  # for log 0: its exp is 0 as well, and it can be multiplied by that 0


def generalized_jsd(
    student: Tensor, teacher: Tensor, beta: float = 0.5, temperature: Temperature = 1.0, mask: Mask = None
) -> Tensor:
    """Generalised Jensen-Shannon divergence: both sides against their mixture, between the two KLs.

    M = β p_t + (1 - β) p_s; mean over valid rows of β KL(p_t || M) + (1 - β) KL(p_s || M), without T². β = 0 is
    KL(p_t || p_s) and β = 1 is KL(p_s || p_t): the limits of this value divided by β and by 1 - β, so the scale jumps
    at both ends. Bounded by the entropy of (β, 1 - β), log 2 at ½. Agarwal et al. 2024 (GKD), arXiv 2306.13649.
    student, teacher: logits (..., K), K >= 2. Classes at -inf on either side keep it finite unless β is 0 or 1.
    """
    _check_share("beta", beta)
    student, teacher, valid = softened(student, teacher, temperature, mask)
    if beta in (0, 1):
        return masked_mean(divergence(student, teacher) if beta else divergence(teacher, student), valid)
    log_student, log_teacher = _log_probabilities(student), _log_probabilities(teacher)
    mixture = _log_mixture(log_teacher, log_student, beta)
    rows = beta * _against(log_teacher, mixture) + (1 - beta) * _against(log_student, mixture)
    return masked_mean(rows, valid)


def skewed_forward_kl(
    student: Tensor, teacher: Tensor, alpha: float = 0.1, temperature: Temperature = 1.0, mask: Mask = None
) -> Tensor:
    """Skewed KL: the forward KL with some of the teacher mixed into the student, which bounds it by -log α.

    mean over valid rows of KL(p_t || α p_t + (1 - α) p_s), without T². α = 0 is KL(p_t || p_s), α = 1 is 0. Ko et al.
    2024 (DistiLLM), arXiv 2402.03898. student, teacher: logits (..., K), K >= 2.
    """
    student, teacher, valid = softened(student, teacher, temperature, mask)
    return masked_mean(_skewed(teacher, student, alpha), valid)


def skewed_forward_cross_entropy(
    student: Tensor, teacher: Tensor, alpha: float = 0.1, temperature: Temperature = 1.0, mask: Mask = None
) -> Tensor:
    """Skewed KL plus the teacher's entropy: what DistiLLM's code computes, of the same gradient, not 0 at equality.

    mean over valid rows of -Σ_k p_t log(α p_t + (1 - α) p_s). Arguments and shapes are those of skewed_forward_kl.
    """
    student, teacher, valid = softened(student, teacher, temperature, mask)
    log_teacher = _log_probabilities(teacher)
    return masked_mean(_skewed(teacher, student, alpha) - (log_teacher.exp() * log_teacher).sum(-1), valid)


def skewed_reverse_kl(
    student: Tensor, teacher: Tensor, alpha: float = 0.1, temperature: Temperature = 1.0, mask: Mask = None
) -> Tensor:
    """Skewed reverse KL: the reverse KL with some of the student mixed into the teacher.

    mean over valid rows of KL(p_s || α p_s + (1 - α) p_t), without T²: finite where the teacher is at -inf, unless α
    is 0. Ko et al. 2024 (DistiLLM), arXiv 2402.03898. student, teacher: logits (..., K), K >= 2.
    """
    student, teacher, valid = softened(student, teacher, temperature, mask)
    return masked_mean(_skewed(student, teacher, alpha), valid)


def top_k_kl(
    student: Tensor,
    teacher: Tensor,
    k: int,
    temperature: Temperature = 1.0,
    mask: Mask = None,
    missing: str = "tail",
) -> Tensor:
    """KL over the teacher's k most likely classes, all that is left of a teacher whose logits were cut to be stored.

    missing="tail": mean over valid rows of KL(p_t || p_s) over k + 1 classes, the last one being all other classes
    together; "zero": of Σ_top q (log q - log p_s), q = p_t / Σ_top p_t, which is -log Σ_top p_t where the student
    equals the teacher, and 0 only where the student gives nothing to the other classes. Both are soft_target_kl
    without T² where k >= K. DistillKit (Arcee AI).
    student, teacher: logits (..., K), K >= 2; a teacher at -inf outside its k classes makes both modes the same.
    """
    if missing not in ("tail", "zero"):
        raise ValueError(f"expected missing='tail' or 'zero', got {missing!r}: it says what the other classes get.")
    _check_number("k", k)
    student, teacher, valid = softened(student, teacher, temperature, mask)
    chosen = teacher.topk(min(k, teacher.shape[-1])).indices
    if missing == "tail":
        return masked_mean(divergence(_grouped(teacher, chosen), _grouped(student, chosen)), valid)
    log_teacher, log_student = teacher.gather(-1, chosen).log_softmax(-1), student.log_softmax(-1).gather(-1, chosen)
    target = log_teacher.exp()
    return masked_mean((target * (log_teacher - log_student).masked_fill(target == 0, 0)).sum(-1), valid)


def universal_logit(
    student: Tensor,
    teacher: Tensor,
    temperature: Temperature = 1.0,
    student_mask: Mask = None,
    teacher_mask: Mask = None,
    top: int | None = None,
    teacher_temperature: Temperature | None = None,
) -> Tensor:
    """Universal logit distillation: sorted probabilities, for two vocabularies that share nothing.

    mean over samples of 1/n Σ_{i < n} Σ_v |p↓_s(i, v) - p↓_t(i, v)|, p↓ the probabilities of a position, largest
    first, the shorter vocabulary filled up with 0; the i-th valid position of the student meets the i-th of the
    teacher, n is the smaller number of them, and samples with n = 0 do not count. Between 0 and 2. Boizard et al. 2024
    (ULD), arXiv 2402.12030.
    student: logits (B, N_s, V_s); teacher: (B, N_t, V_t); student_mask, teacher_mask: (B, N_s), (B, N_t).
    top: sort only so many, and take the rest of the probability as one more; it never gives more than all of them do.
    teacher_temperature: None takes `temperature`.
    """
    if student.ndim != 3 or teacher.ndim != 3 or len(student) != len(teacher):
        raise ValueError(
            f"expected logits (B, N, V) of one batch, got {[*student.shape]} (student) and {[*teacher.shape]} "
            "(teacher): samples are compared one to one. Rows (B, K) are samples of one position: logits[:, None]."
        )
    if top is not None:
        _check_number("top", top)
    temperatures = (temperature, temperature if teacher_temperature is None else teacher_temperature)
    if any(not isinstance(degree, Tensor) and not 0 < degree < math.inf for degree in temperatures):
        raise ValueError(f"expected temperatures above 0, got {temperatures}: they divide the logits. Take 1 to 10.")
    ours, theirs = validity(student_mask, student), validity(teacher_mask, teacher)
    pairs = torch.minimum(ours.sum(1), theirs.sum(1))  # (B,)
    # only what is compared is sorted, since that is what this costs; for it the device waits for the number of pairs
    kept = [valid & (valid.cumsum(1) <= pairs[:, None]) for valid in (ours, theirs)]
    width = max(student.shape[-1], teacher.shape[-1]) if top is None else top
    sorted_student, sorted_teacher = (
        _largest_first(blanked(logits[keep]) / _rows_of(degree, keep), width, top)  # (all pairs, width)
        for logits, keep, degree in zip((student, teacher.detach()), kept, temperatures, strict=True)
    )
    distances = (sorted_student - sorted_teacher).abs().sum(-1)
    shares = distances / pairs.repeat_interleave(pairs, output_size=len(distances))
    return shares.sum() / (pairs > 0).sum().clamp(min=1)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"expected {name} from 0 to 1, got {value}: it is a share of a mixture. Take 0.1 or 0.5.")


def _check_number(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"expected {name} >= 1, got {value}: so many classes are compared. Take 64 to 1000.")


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1).clamp(min=_LEAST_LOG)


def _log_mixture(log_first: Tensor, log_second: Tensor, share: float) -> Tensor:
    return torch.logaddexp(log_first + _log(share), log_second + _log(1 - share))


def _against(log_probabilities: Tensor, log_mixture: Tensor) -> Tensor:
    """KL to a mixture that holds some of the distribution itself, so that no term is infinite: (..., K) -> (...)."""
    return (log_probabilities.exp() * (log_probabilities - log_mixture)).sum(-1)


def _skewed(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """KL(p_first || α p_first + (1 - α) p_second) of logits (..., K) -> (...)."""
    _check_share("alpha", alpha)
    if alpha == 0:
        return divergence(first, second)
    log_first = _log_probabilities(first)
    return _against(log_first, _log_mixture(log_first, _log_probabilities(second), alpha))


def _grouped(logits: Tensor, chosen: Tensor) -> Tensor:
    """Logits (..., K) of the chosen k classes and of all others as one, -inf without others, (..., k + 1)."""
    taken = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, chosen, True)
    others = logits.masked_fill(taken, _LEAST_LOG).logsumexp(-1, keepdim=True)  # of -inf alone its gradient is NaN
    return torch.cat([logits.gather(-1, chosen), others.masked_fill(others < _LEAST_LOG / 2, -torch.inf)], dim=-1)


def _rows_of(temperature: Temperature, keep: Tensor) -> Temperature:
    """The temperature of each kept position, where every position has its own."""
    return temperature.expand(*keep.shape, 1)[keep] if isinstance(temperature, Tensor) else temperature


def _largest_first(logits: Tensor, width: int, top: int | None) -> Tensor:
    """Probabilities of logits (P, V), largest first, (P, width): all of them, or the largest and the rest as one."""
    classes = logits.shape[-1]
    largest = logits.sort(-1, descending=True).values if top is None else logits.topk(min(top, classes)).values
    probabilities = pad((largest - logits.logsumexp(-1, keepdim=True)).exp(), (0, width - largest.shape[-1]))
    return probabilities if top is None else torch.cat([probabilities, 1 - probabilities.sum(-1, keepdim=True)], -1)
