"""Formulas of MobileBERT's layer-wise knowledge transfer: feature maps, attention, and whose turn it is."""

import torch
from torch import Tensor
from torch.nn import functional

from hfdistill.functional.reductions import Mask, blanked, masked_mean, matched, validity

LAYER_NORM_EPSILON = 1e-12


def feature_map_transfer(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """Hidden states, each token's brought to mean 0 and variance 1: what a layer norm without weights leaves of them.

    mean over valid tokens of mean_d (LN(s) - LN(t))². Sun et al. 2020 (MobileBERT), arXiv 2004.02984, equation 1, its
    normalised part. student, teacher: (..., D).
    """
    student, teacher, valid = matched(student, teacher, mask)
    ours, theirs = (functional.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPSILON) for x in (student, teacher))
    return masked_mean((ours - theirs).square().mean(-1), valid)


def feature_statistics(student: Tensor, teacher: Tensor, mask: Mask = None) -> tuple[Tensor, Tensor]:
    """What feature_map_transfer leaves out, free of both widths: means and variances of the tokens' states.

    means over valid tokens of (mean_d s - mean_d t)² and of |var_d s - var_d t|. Sun et al. 2020 (MobileBERT), arXiv
    2004.02984, authors' code ("beta" and "gamma"; it compares each layer with all of the teacher's by mistake, this
    does not). student: (..., D_s); teacher: (..., D_t).
    """
    valid = validity(mask, student, teacher)
    ours, theirs = blanked(student, valid), blanked(teacher.detach(), valid)
    means = (ours.mean(-1) - theirs.mean(-1)).square()
    variances = (ours.var(-1, correction=0) - theirs.var(-1, correction=0)).abs()
    return masked_mean(means, valid), masked_mean(variances, valid)


def _queries_and_keys(attention: Tensor, mask: Mask, allowed: Mask) -> Mask:
    """Which pairs (B, 1, N, N) of real tokens the attention pattern permits; None: all."""
    if mask is None and allowed is None:
        return None
    valid = validity(mask, attention[:, 0])
    pairs = valid[:, None, :, None] & valid[:, None, None, :]  # (B, 1, N, N)
    return pairs if allowed is None else pairs & allowed.bool()


def attention_cross_entropy(student: Tensor, teacher: Tensor, mask: Mask = None, allowed: Mask = None) -> Tensor:
    """Attention distributions, from the scores before the softmax: exact where probabilities would underflow.

    mean over heads and valid queries of -Σ_keys softmax(t) log softmax(s), the softmax over the valid keys. Not 0 at
    equality but the teacher's entropy; the gradient is that of the KL. Sun et al. 2020 (MobileBERT), arXiv 2004.02984,
    equation 2, as the authors' code computes it. student, teacher: (B, H, N, N); mask: (B, N); allowed: True where the
    attention pattern permits the pair, spreads to (B, 1, N, N).
    """
    student, teacher, _ = matched(student, teacher)
    pairs = _queries_and_keys(student, mask, allowed)
    lowest = torch.finfo(student.dtype).min  # not -inf: NaN for a query without a key
    ours, theirs = (side if pairs is None else side.masked_fill(~pairs, lowest) for side in (student, teacher))
    target = theirs.softmax(-1)
    rows = -(target * ours.log_softmax(-1).masked_fill(target == 0, 0)).sum(-1)  # (B, H, N)
    return masked_mean(rows, None if pairs is None else pairs.any(-1))


def attention_probability_cross_entropy(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """Attention maps after the softmax, as distributions over the keys; with scores take attention_cross_entropy.

    mean over heads and valid queries of -Σ_keys t log s, an s of 0 (underflow) at least the smallest normal number.
    Sun et al. 2020 (MobileBERT), arXiv 2004.02984, equation 2. student, teacher: (B, H, N, N); mask: (B, N).
    """
    student, teacher, _ = matched(student, teacher)
    pairs = _queries_and_keys(student, mask, None)
    ours, theirs = blanked(student, pairs), blanked(teacher, pairs)
    rows = -(theirs * ours.clamp(min=torch.finfo(ours.dtype).tiny).log()).sum(-1)  # (B, H, N)
    return masked_mean(rows, None if pairs is None else pairs.any(-1))


def layer_in_turn(progress: float, layers: int, finish: float) -> tuple[int, float]:
    """Progressive transfer: which of `layers` layers learns at this progress, counted from 0, and with which weight.

    Layer ⌊layers · progress / finish⌋ with 1 / layers, up to `finish`; then the last one with 0. Sun et al. 2020
    (MobileBERT), arXiv 2004.02984, progressive knowledge transfer as the authors' code has it. progress: 0 to 1;
    finish: in (0, 1].
    """
    turn = int(progress / finish * layers + 1e-6)  # a step at the border of two phases is the first of the second
    return min(turn, layers - 1), 1.0 / layers if progress <= finish else 0.0


def check_progressive(finish: float | None) -> None:
    """Raise ValueError unless it is None (all layers learn at once) or a share of the run, in (0, 1]."""
    if finish is not None and not 0.0 < finish <= 1.0:
        raise ValueError(
            f"progressive must be a share of the run above 0 and at most 1, got {finish}: the layers divide it among "
            "them. Write steps of layer-wise transfer / steps of training, or None for all layers at once."
        )
