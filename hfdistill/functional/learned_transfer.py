"""The formula of learned transfer: features matched channel by channel, with weights that were learned elsewhere."""

from torch import Tensor

from hfdistill.functional.reductions import Mask, blanked, masked_mean, matched, validity


def weighted_feature_match(
    student: Tensor, teacher: Tensor, channel_weights: Tensor, pair_weights: Tensor, mask: Mask = None
) -> Tensor:
    """What and where to transfer: squared differences, weighed by channel and by how much this pair of layers matters.

    mean over samples with a valid token of λ_b Σ_d w_bd (1/n_b) Σ_i (s_bid - t_bid)², over the n_b valid tokens. Jang
    et al. 2019 (L2T-ww), ICML. student, teacher: (B, N, D); channel_weights: w (B, D), rows of sum 1; pair_weights: λ
    (B,), >= 0; mask: (B, N). Gradients reach both weights.
    """
    valid = validity(mask, student)
    student, teacher, _ = matched(student, teacher, valid)
    distances = (student - teacher).square().sum(1) / valid.sum(1).clamp(min=1)[:, None]  # (B, D)
    rows = blanked(pair_weights) * (blanked(channel_weights) * distances).sum(-1)  # (B,)
    return masked_mean(rows, valid.any(1))
