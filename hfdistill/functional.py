"""The mathematics of distillation: pure functions of tensors, each formula once.

Shape letters, for the whole package: B batch, N tokens, D width, H heads, K classes, V vocabulary; here also M, layers
or negatives, and `...`, any leading shape. In formulas s is the student's tensor, t the teacher's. For every function:

* Gradients never reach teacher tensors: they are detached here.
* `mask`: 1 or True = valid; of the inputs' leading shape `...`, such as (B, N), unless said otherwise. Masked entries
  never count and get a zero gradient, whatever they hold, NaN and inf too. Means are over valid items, denominators
  are clamped to >= 1: a batch that is all masked gives 0 with a zero gradient.
* `temperature`: T > 0, without unit; a float, or a tensor of one value or of shape (..., 1), one T per row, whose
  values are not checked, because the device would have to wait.
* Returns: a scalar tensor (); divergences in nats, squares in squared units of the inputs, cosines without unit.
  Half precision is computed and returned in float32, under autocast too; float64 stays float64.
* Raises: ValueError for shapes that do not fit, a float temperature that is not positive, an unknown reduction.
* Not here: weights, schedules, layer maps, projections, labels, sums over processes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Mask = Tensor | None
Temperature = float | Tensor
_Rows = tuple[Tensor, Tensor, Mask]


def _blank(tensor: Tensor, valid: Mask = None) -> Tensor:
    if valid is not None:  # before any arithmetic: a NaN that is only multiplied by 0 stays a NaN, backward too
        tensor = tensor.masked_fill(~(valid if valid.ndim == tensor.ndim else valid[..., None]), 0)
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _valid(mask: Mask, *inputs: Tensor) -> Tensor:
    valid = torch.ones_like(inputs[0][..., 0], dtype=torch.bool) if mask is None else mask.bool()
    if any(valid.shape != rows.shape[:-1] for rows in inputs):
        raise ValueError(
            f"expected rows {[*valid.shape]} as in the {'first input' if mask is None else 'mask'}, got inputs of "
            f"{' and '.join(str([*rows.shape]) for rows in inputs)}. Pass one entry of the mask for each row compared."
        )
    return valid


def _rows(student: Tensor, teacher: Tensor, mask: Mask = None) -> _Rows:
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected one shape on both sides, got {[*student.shape]} (student) and {[*teacher.shape]} "
            "(teacher): entries are compared one by one. Project the student to the teacher's width, map the classes, "
            "or compare relations, which are free of the width (relation_kl, similarity_preserving)."
        )
    valid = None if mask is None else _valid(mask, student)
    return _blank(student, valid), _blank(teacher.detach(), valid), valid


def _mean(values: Tensor, valid: Mask = None) -> Tensor:
    if valid is None:
        return values.sum() / max(values.numel(), 1)
    return values.masked_fill(~valid, 0).sum() / valid.expand_as(values).sum().clamp(min=1)


def _squares(student: Tensor, teacher: Tensor) -> Tensor:
    shut_out = torch.isinf(student) & (student == teacher)  # -inf on both sides counts as equal
    return (student - teacher).masked_fill(shut_out, 0).square()


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    log_first, log_second = first.log_softmax(-1), second.log_softmax(-1)
    first = log_first.exp()  # 0 log 0 = 0: the difference is filled, not the product, as it is the gradient of first
    return (first * (log_first - log_second).masked_fill(first == 0, 0)).sum(-1)


def _unit(tensor: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(tensor, dim=-1, keepdim=True)
    return tensor / torch.where(norm > 1e-12, norm, 1)  # without a direction: left alone, with a bounded gradient


def _product(left: Tensor, right: Tensor) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):  # it would take the product back to half precision
        return left @ right


def _check_reduction(reduction: str, *accepted: str) -> None:
    if reduction not in accepted:
        raise ValueError(f"expected a reduction among {accepted}, got {reduction!r}: it sets the size of the loss.")


def _soften(student: Tensor, teacher: Tensor, temperature: Temperature, mask: Mask, classes: int = 2) -> _Rows:
    if not isinstance(temperature, Tensor) and not 0 < temperature < math.inf:
        raise ValueError(f"expected a temperature above 0, got {temperature}: it divides the logits. Take 1 to 10.")
    if isinstance(temperature, Tensor) and temperature.ndim and temperature.shape[-1] != 1:
        raise ValueError(
            f"expected a temperature of one value or (..., 1), got {[*temperature.shape]}. Per row: T[..., None]."
        )
    if student.shape[-1] < classes:
        raise ValueError("expected at least 2 classes, got 1: its probability is always 1. Use logit_mse to learn it.")
    student, teacher, valid = _rows(student, teacher, mask)
    return student / temperature, teacher / temperature, valid


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
    _check_reduction(reduction, "mean", "elementmean")
    soft_student, soft_teacher, valid = _soften(student, teacher, temperature, mask)
    rows = _divergence(soft_teacher, soft_student)
    rows = (rows[..., None] * temperature**2)[..., 0] if scale_by_temperature else rows
    return _mean(rows, valid) / (1 if reduction == "mean" else student.shape[-1])


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
    _check_reduction(reduction, "mean", "elementmean")
    soft_student, soft_teacher, valid = _soften(student, teacher, temperature, mask)
    target = soft_teacher.softmax(-1)
    rows = -(target * soft_student.log_softmax(-1).masked_fill(target == 0, 0)).sum(-1)
    rows = (rows[..., None] * temperature**2)[..., 0] if scale_by_temperature else rows
    return _mean(rows, valid) / (1 if reduction == "mean" else student.shape[-1])


def reverse_kl(student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, mask: Mask = None) -> Tensor:
    """Reverse KL: the student avoids what the teacher finds unlikely.

    mean over valid rows of Σ_k p_s (log p_s - log p_t), without T². Gu et al. 2023 (MiniLLM), arXiv 2306.08543.
    student, teacher: logits (..., K), K >= 2. A teacher cut to its top classes, -inf elsewhere, makes it inf.
    """
    student, teacher, valid = _soften(student, teacher, temperature, mask)
    return _mean(_divergence(student, teacher), valid)


def total_variation(student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, mask: Mask = None) -> Tensor:
    """Total variation distance of the two class distributions, between 0 and 1.

    mean over valid rows of ½ Σ_k |p_t - p_s|, without T². Wen et al. 2023 (f-distill), arXiv 2307.15190.
    student, teacher: logits (..., K), K >= 2.
    """
    student, teacher, valid = _soften(student, teacher, temperature, mask)
    return _mean((teacher.softmax(-1) - student.softmax(-1)).abs().sum(-1) / 2, valid)


def logit_mse(student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, mask: Mask = None) -> Tensor:
    """Regression on the logits; unlike a divergence it sees a constant added to a row.

    mean over valid rows and all classes of ((s - t) / T)². Ba and Caruana 2014, arXiv 1312.6184.
    student, teacher: logits (..., K), K >= 1. A class at -inf on both sides adds 0.
    """
    student, teacher, valid = _soften(student, teacher, temperature, mask, classes=1)
    return _mean(_squares(student, teacher).mean(-1), valid)


def hidden_mse(student: Tensor, teacher: Tensor, mask: Mask = None, reduction: str = "mean") -> Tensor:
    """Hints: the student's hidden states move to the teacher's.

    mean over valid tokens of mean_d (s - t)², or, with reduction "paper", of ½ Σ_d (s - t)². Romero et al. 2015
    (FitNets), arXiv 1412.6550. student, teacher: (..., D).
    """
    _check_reduction(reduction, "mean", "paper")
    student, teacher, valid = _rows(student, teacher, mask)
    squares = (student - teacher).square().mean(-1)
    return _mean(squares, valid) * (1 if reduction == "mean" else student.shape[-1] / 2)


def hidden_cosine(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """Directions of the hidden states, whatever their length: 0 aligned, 1 orthogonal, 2 opposite.

    mean over valid tokens of 1 - cos(s, t). Sanh et al. 2019 (DistilBERT), arXiv 1910.01108. Both inputs: (..., D).
    """
    student, teacher, valid = _rows(student, teacher, mask)
    return _mean(1 - (_unit(student) * _unit(teacher)).sum(-1), valid)


def patience(student: Tensor, teacher: Tensor, normalize: bool = True, reduction: str = "mean") -> Tensor:
    """Patient distillation: the [CLS] states of intermediate layers, as directions.

    (s/|s| - t/|t|)², "mean": over B, M and D, as in the authors' code; "paper": summed over M and D, mean over B.
    Sun et al. 2019 (PKD), arXiv 1908.09355. student, teacher: (B, M, D); normalize=False takes s and t as they are.
    """
    _check_reduction(reduction, "mean", "paper")
    student, teacher, _ = _rows(student, teacher)
    squares = (_unit(student) - _unit(teacher) if normalize else student - teacher).square()
    return _mean(squares if reduction == "mean" else squares.sum((-2, -1)))


def _pairs(student: Tensor, teacher: Tensor, mask: Mask = None, allowed: Mask = None) -> Mask:
    if student.ndim != 4 or student.shape != teacher.shape:
        raise ValueError(
            f"expected (B, H, N, N) on both sides, got {[*student.shape]} (student) and {[*teacher.shape]} "
            "(teacher). Heads are compared one by one. For other head counts use relation_kl, which is free of them."
        )
    if mask is None and allowed is None:
        return None
    valid = _valid(mask, student[:, 0])
    pairs = valid[:, None, :, None] & valid[:, None, None, :]  # (B, 1, N, N)
    try:
        return pairs if allowed is None else pairs & allowed.bool().expand_as(pairs)
    except RuntimeError as error:
        raise ValueError(f"expected `allowed` to spread to (B, 1, N, N), as (N, N) does: {error}") from error


def attention_score_mse(student: Tensor, teacher: Tensor, mask: Mask = None, allowed: Mask = None) -> Tensor:
    """Attention scores before the softmax, over real tokens only: longer padding changes nothing.

    mean over heads and valid (query, key) pairs of (s - t)². Jiao et al. 2020 (TinyBERT), arXiv 1909.10351.
    student, teacher: (B, H, N, N); mask: (B, N), a pair needs both; allowed: True where the attention pattern (causal,
    sliding window) permits the pair, (N, N) or whatever else spreads to (B, 1, N, N).
    """
    pairs = _pairs(student, teacher, mask, allowed)
    return _mean(_squares(_blank(student, pairs), _blank(teacher.detach(), pairs)), pairs)


def attention_score_mse_tinybert(student: Tensor, teacher: Tensor) -> Tensor:
    """TinyBERT's scores as its reference code compares them, for parity: the value depends on the padding.

    mean over the whole padded (B, H, N, N) of (s' - t')², an entry <= -100 read as 0 on its side. Jiao et al. 2020,
    arXiv 1909.10351, authors' code. student, teacher: scores (B, H, N, N) with the additive mask in them.
    """
    _pairs(student, teacher)
    return _mean(_squares(_blank(student, student > -100), _blank(teacher.detach(), teacher > -100)))


def attention_probability_kl(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """Attention maps after the softmax, as distributions over the keys.

    mean over heads and valid queries of Σ_keys t (log t - log s), 0 log 0 = 0, an s of 0 (underflow) at least the
    smallest normal number. Wang et al. 2020 (MiniLM), arXiv 2002.10957. Both: (B, H, N, N); mask: (B, N).
    """
    pairs = _pairs(student, teacher, mask)
    student, teacher = _blank(student, pairs), _blank(teacher.detach(), pairs)
    log_student = student.clamp(min=torch.finfo(student.dtype).tiny).log()
    rows = (torch.xlogy(teacher, teacher) - teacher * log_student).sum(-1)  # (B, H, N)
    return _mean(rows, None if mask is None else mask.bool()[:, None])


def attention_probability_mse(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """Attention maps after the softmax, entry by entry: formula, source and shapes of attention_score_mse."""
    return attention_score_mse(student, teacher, mask)


def _relation_scores(left: Tensor, right: Tensor, heads: int, valid: Tensor) -> Tensor:
    if left.ndim != 3 or left.shape != right.shape or heads < 1 or left.shape[-1] % heads:
        raise ValueError(
            f"expected two (B, N, D) of one shape, got {[*left.shape]} and {[*right.shape]}, D divisible by "
            f"heads={heads}: each relation head takes D / heads of the width. Choose heads that divide both models' D."
        )
    shape = (*left.shape[:2], heads, left.shape[-1] // heads)
    left, right = (_blank(side, valid).reshape(shape).transpose(1, 2) for side in (left, right))  # (B, H, N, D / H)
    scores = _product(left, right.transpose(-1, -2)) / math.sqrt(shape[-1])  # (B, H, N, N)
    return scores.masked_fill(~valid[:, None, None], torch.finfo(scores.dtype).min)  # -inf: NaN if all are masked


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
    valid = _valid(mask, student_left, student_right, teacher_left, teacher_right)
    sides = ((student_left, student_right), (teacher_left.detach(), teacher_right.detach()))
    student, teacher, _ = _rows(*[_relation_scores(left, right, heads, valid) for left, right in sides])
    rows = _divergence(teacher, student).mean(1) * valid  # (B, N)
    return _mean(rows.sum(1) / valid.sum(1).clamp(min=1), valid.any(1))


def cos_nce(
    student: Tensor, teacher: Tensor, negatives: Tensor, negative_mask: Mask = None, mask: Mask = None
) -> Tensor:
    """Contrast by angle: near one's own teacher vector, far from those of other samples; between 0 and 4.

    mean over valid rows of Σ_i [2 - (g(n_i, s) - g(t, s))] / 2M + g(t, s), g = 1 - cos, over the row's M valid
    negatives; a row without any: g(t, s). Fu et al. 2021 (LRC-BERT), arXiv 2012.07335. student, teacher: (B, D);
    negatives: teacher vectors (B, M, D), M >= 0; negative_mask: (B, M); mask: (B,).
    """
    student, teacher, valid = _rows(student, teacher, mask)
    if negatives.ndim != 3 or (negatives.shape[0], negatives.shape[2]) != student.shape:
        raise ValueError(
            f"expected negatives (B, M, D) for rows {[*student.shape]}, got {[*negatives.shape]}. Expand shared ones."
        )
    real, student = _valid(negative_mask, negatives), _unit(student)
    near = 1 - (student * _unit(teacher)).sum(-1)  # (B,)
    far = 1 - (_unit(_blank(negatives.detach(), real)) * student[:, None]).sum(-1)  # (B, M)
    margins = (1 - (far - near[:, None]) / 2).masked_fill(~real, 0).sum(-1) / real.sum(-1).clamp(min=1)
    return _mean(margins + near, valid)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarities between the samples of a batch, free of both widths.

    |G_s - G_t|² / B², G the Gram matrix (B, B) of the flattened samples, its rows scaled to length 1. Tung and Mori
    2019, arXiv 1907.09682. student: (B, ...); teacher: (B, ...). No mask: pool padded tokens before.
    """
    flat = [_blank(side).flatten(1) for side in (student, teacher.detach())]  # (B, D)
    student, teacher, _ = _rows(*[_product(side, side.T) for side in flat])
    return _mean((_unit(student) - _unit(teacher)).square())


def flow_of_solution(
    student_first: Tensor, student_second: Tensor, teacher_first: Tensor, teacher_second: Tensor, mask: Mask = None
) -> Tensor:
    """Flow of the solution procedure: how two layers of one network relate.

    mean over samples with a valid token, D_1 and D_2 of (G_s - G_t)², G = (1/n_b) Σ_i x_i y_iᵀ over the n_b valid
    tokens. Yim et al. 2017 (FSP), CVPR. *_first: (B, N, D_1); *_second: (B, N, D_2); mask: (B, N).
    """
    valid = _valid(mask, student_first, student_second, teacher_first, teacher_second)
    sides = ((student_first, student_second), (teacher_first.detach(), teacher_second.detach()))
    flows = [_product(_blank(x, valid).transpose(1, 2), _blank(y, valid)) for x, y in sides]  # (B, D_1, D_2)
    student, teacher, _ = _rows(*flows)
    difference = (student - teacher) / valid.sum(1).clamp(min=1)[:, None, None]
    return _mean(difference.square(), valid.any(1)[:, None, None])


def triplet(teacher: Tensor, student_positive: Tensor, student_negative: Tensor, margin: float = 5.0) -> Tensor:
    """Triplets of logits: the teacher's anchor attracts the student's own, repels its logits of another class.

    mean of max(0, |t(x) - s(x)| - |t(x) - s(x')| + margin), x' of another class than x. Oki et al. 2020, arXiv
    2004.08116. All: logits (..., K); margin: > 0, in units of the logits. 1e-6 in the norm keeps the gradient finite.
    """
    (positive, anchor, _), (negative, _, _) = _rows(student_positive, teacher), _rows(student_negative, teacher)
    return _mean(F.triplet_margin_loss(anchor, positive, negative, margin=margin, reduction="none"))
