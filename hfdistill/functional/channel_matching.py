"""Formulas of matching guided distillation: which teacher channels a student channel learns from, and how."""

import math

import torch
from torch import Tensor

from hfdistill.functional.reductions import Mask, blanked, check_reduction, matched, product, unit, validity

_NEVER_NEGATIVE = 1e-3  # probability of a negative value below which the margin is -3 standard deviations


def channel_cost(student: Tensor, teacher: Tensor, mask: Mask = None) -> Tensor:
    """How unlike each student channel is each teacher channel, between 0 and 4; 2 - 2 cos where neither is empty.

    mean over samples with a valid token of |ŝ_i - t̂_j|², channels as unit vectors over the valid tokens of a sample.
    Yue et al. 2020 (MGD), arXiv 2008.09958. student: (B, N, D_student); teacher: (B, N, D_teacher); mask: (B, N).
    Returns (D_student, D_teacher).
    """
    valid = validity(mask, student, teacher)
    ours, theirs = (  # (D, B, N)
        unit(blanked(side, None if mask is None else valid).permute(2, 0, 1)) for side in (student, teacher.detach())
    )
    lengths = ours.square().sum((1, 2))[:, None] + theirs.square().sum((1, 2))
    likeness = product(ours.flatten(1), theirs.flatten(1).T)  # (D_student, D_teacher)
    return (lengths - 2 * likeness).clamp(min=0) / valid.any(1).sum().clamp(min=1)


def channel_groups(cost: Tensor, size: int | None = None) -> Tensor:
    """Teacher channels for each student channel, each used at most once, as cheap as possible in sum; exact.

    A linear assignment in which each student channel appears `size` times, solved by shortest augmenting paths
    (Jonker and Volgenant 1987, https://doi.org/10.1007/BF02278710) on the CPU: seconds for 768 x 768. Yue et al. 2020
    (MGD), arXiv 2008.09958. cost: (D_student, D_teacher), finite; size G: by default as many as there are for all,
    D_teacher // D_student, the remainder is left over. Returns channels (D_student, G), ascending in each row.
    """
    students, teachers = cost.shape
    size = max(teachers // students, 1) if size is None else size
    if size < 1 or size * students > teachers or not cost.isfinite().all():
        raise ValueError(
            f"expected finite costs of at least {size} x {students} teacher channels, got {teachers}: each student "
            "channel takes its own. Use a narrower student, or project it to the teacher's width (hidden_mse)."
        )
    costs = cost.detach().double().cpu()
    prices = costs.new_zeros(teachers)  # what a teacher channel costs on top, because others want it too
    owners = torch.full((teachers,), -1)  # student channel of each teacher channel
    for student in torch.arange(students).repeat(size).tolist():
        _give_one_more(student, costs, prices, owners)
    taken = owners.argsort(stable=True)[teachers - size * students :]  # by owner; those without one come first
    return taken.view(students, size).to(cost.device)


def _give_one_more(student: int, costs: Tensor, prices: Tensor, owners: Tensor) -> None:
    """Change `owners` so that `student` has one channel more at the least cost, and `prices` so that this shows."""
    distances = costs[student] - prices  # final where a channel is settled
    remaining = distances.masked_fill(owners == student, torch.inf)  # inf where it is
    previous = torch.full_like(owners, student)  # which student would take each channel
    handed_on = {student: -1}  # which channel each student on the way would give up
    vacant = owners < 0
    while True:
        shortest, nearest = remaining.min(0)
        free = (remaining == shortest) & vacant  # of several nearest ones a free one ends the search
        channel = int(free.byte().argmax()) if free.any() else int(nearest)
        owner = int(owners[channel])
        if owner < 0:
            break
        handed_on[owner] = channel
        through = costs[owner] - prices
        through += shortest - through[channel]
        held = owners == owner  # all of its channels are as near
        distances.masked_fill_(held, shortest)
        remaining.masked_fill_(held, torch.inf)
        through.masked_fill_(remaining == torch.inf, torch.inf)
        previous.masked_fill_(through < remaining, owner)
        remaining = torch.minimum(remaining, through)
    settled = remaining == torch.inf
    prices[settled] += distances[settled] - shortest
    while channel >= 0:  # every student on the way moves on by one channel
        mover = int(previous[channel])
        owners[channel] = mover
        channel = handed_on[mover]


def reduced_channels(teacher: Tensor, groups: Tensor, reduction: str = "absolute_max") -> Tensor:
    """The teacher's channels of each group as one: at each token the entry of the largest size, its sign kept.

    t_i,c with c = argmax over the group of |t_ic|; reduction "max": the largest entry. Yue et al. 2020 (MGD, absolute
    max pooling), arXiv 2008.09958. teacher: (..., D_teacher); groups: channels (D_student, G). Returns
    (..., D_student), detached.
    """
    check_reduction(reduction, "absolute_max", "max")
    members = blanked(teacher.detach())[..., groups]  # (..., D_student, G)
    if reduction == "max" or groups.shape[-1] == 1:
        return members.amax(-1)
    return members.gather(-1, members.abs().argmax(-1, keepdim=True)).squeeze(-1)


def negative_margin(mean: Tensor, deviation: Tensor) -> Tensor:
    """How low a channel is when it is negative: the mean of the negative part of a Gaussian.

    E[x | x < 0] = μ - σ φ(μ/σ) / Φ(-μ/σ), or -3 σ where Φ <= 0.001. Heo et al. 2019 (Overhaul), arXiv 1904.01866; Yue
    et al. 2020 (MGD), arXiv 2008.09958. mean μ, deviation σ: of a batch normalisation, (D,); the sign of σ is of no
    matter. Returns (D,).
    """
    mean, deviation = blanked(mean.detach()), blanked(deviation.detach()).abs()
    ratio = mean / deviation
    log_share = torch.special.log_ndtr(-ratio)  # log Φ, so that its smallness divides nothing
    margin = mean - deviation * (-ratio.square() / 2 - log_share).exp() / math.sqrt(2 * math.pi)
    return torch.where(log_share.exp() <= _NEVER_NEGATIVE, -3 * deviation, margin)


def margin_regression(student: Tensor, teacher: Tensor, margin: Tensor, mask: Mask = None) -> Tensor:
    """Regression before a ReLU: negative targets are raised to a margin, and a student below them is left alone.

    Sum over valid tokens and channels of (s - τ)² where s > τ or τ > 0, τ = max(t, margin). Heo et al. 2019
    (Overhaul), arXiv 1904.01866; Yue et al. 2020 (MGD), arXiv 2008.09958, who divide it by 10⁴ B. student, teacher:
    (..., D); margin: (D,), -inf for none; mask: (...).
    """
    student, teacher, _ = matched(student, teacher, mask)
    target = torch.maximum(teacher, blanked(margin.detach()))
    return ((student - target) * ((student > target) | (target > 0))).square().sum()
