"""Formulas of response knowledge: two distributions over the classes, or two rows of logits."""

from torch import Tensor

from hfdistill.functional.reductions import (
    Mask,
    Temperature,
    check_reduction,
    divergence,
    masked_mean,
    softened,
    squares,
    tempered_mean,
)


def soft_target_kl(
    student: Tensor,
    teacher: Tensor,
    temperature: Temperature = 1.0,
    mask: Mask = None,
    reduction: str = "mean",
    scale_by_temperature: bool = True,
) -> Tensor:
    """Soft targets: the student learns the teacher's class distribution, softened by a temperature.

    T² · mean over valid rows of Σ_k p_t (log p_t - log p_s), p = softmax(logits / T). Hinton et al. 2015, arXiv
    1503.02531. student, teacher: logits (..., K), K >= 2. reduction: "elementmean" divides by K too, as several
    reference codes do. scale_by_temperature: T² keeps the gradient's size as T changes; False leaves it out.
    A class at -inf on both sides adds 0; at -inf for the student alone it makes the loss inf.
    """
    check_reduction(reduction, "mean", "elementmean")
    soft_student, soft_teacher, valid = softened(student, teacher, temperature, mask)
    rows = divergence(soft_teacher, soft_student)
    value = tempered_mean(rows, temperature if scale_by_temperature else 1.0, valid)
    return value / (1 if reduction == "mean" else student.shape[-1])


def soft_target_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    temperature: Temperature = 1.0,
    mask: Mask = None,
    reduction: str = "mean",
    scale_by_temperature: bool = False,
) -> Tensor:
    """Soft targets as a cross-entropy: soft_target_kl plus the teacher's entropy, so not 0 at equality.

    mean over valid rows of -Σ_k p_t log p_s, by default without T², as in Jiao et al. 2020 (TinyBERT), arXiv
    1909.10351. Arguments and shapes are those of soft_target_kl.
    """
    check_reduction(reduction, "mean", "elementmean")
    soft_student, soft_teacher, valid = softened(student, teacher, temperature, mask)
    target = soft_teacher.softmax(-1)
    rows = -(target * soft_student.log_softmax(-1).masked_fill(target == 0, 0)).sum(-1)
    value = tempered_mean(rows, temperature if scale_by_temperature else 1.0, valid)
    return value / (1 if reduction == "mean" else student.shape[-1])


def reverse_kl(student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, mask: Mask = None) -> Tensor:
    """Reverse KL: the student avoids what the teacher finds unlikely.

    mean over valid rows of Σ_k p_s (log p_s - log p_t), without T². Gu et al. 2023 (MiniLLM), arXiv 2306.08543.
    student, teacher: logits (..., K), K >= 2. A teacher cut to its top classes, -inf elsewhere, makes it inf.
    """
    student, teacher, valid = softened(student, teacher, temperature, mask)
    return masked_mean(divergence(student, teacher), valid)


def total_variation(student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, mask: Mask = None) -> Tensor:
    """Total variation distance of the two class distributions, between 0 and 1.

    mean over valid rows of ½ Σ_k |p_t - p_s|, without T². Wen et al. 2023 (f-distill), arXiv 2307.15190.
    student, teacher: logits (..., K), K >= 2.
    """
    student, teacher, valid = softened(student, teacher, temperature, mask)
    return masked_mean((teacher.softmax(-1) - student.softmax(-1)).abs().sum(-1) / 2, valid)


def logit_mse(student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, mask: Mask = None) -> Tensor:
    """Regression on the logits; unlike a divergence it sees a constant added to a row.

    mean over valid rows and all classes of ((s - t) / T)². Ba and Caruana 2014, arXiv 1312.6184.
    student, teacher: logits (..., K), K >= 1. A class at -inf on both sides adds 0.
    """
    student, teacher, valid = softened(student, teacher, temperature, mask, classes=1)
    return masked_mean(squares(student, teacher).mean(-1), valid)
