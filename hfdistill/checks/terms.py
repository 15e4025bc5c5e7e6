"""How hard each term of the objective pulls at the student before the first step: inert ones, and those that drown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, median_high, median_low
from typing import Any

import torch
from torch import Tensor, nn

from hfdistill.checks.answers import not_applicable
from hfdistill.checks.examination import TERM_BATCHES, Examination
from hfdistill.checks.findings import Finding, Findings

INERT = 1e-4
"""A term hardly counts if its gradient is less than this share of the others' median."""
DROWNS = 100.0
"""A term drowns the others if its gradient is more than this many times their median."""
_NOTHING = 1e-6
"""A gradient of this size is the rounding of a term that is alone."""

_ROUNDING = 1e-6
"""Share of the largest unweighted gradient below which another one is rounding, which no weight brings to life."""
_HALF = 1024.0
"""What losses are multiplied with in float16, whose small gradients would be 0 else, as the run's own scaler does."""


@dataclass(frozen=True)
class Pull:
    """One term at the start of training, a mean over the batches that were looked at.

    Args:
        name: of the term.
        kind: its class.
        weight: at the start.
        value: unweighted.
        norm: of its weighted gradient on the parameters of the student that all terms reach; NaN or inf as it is.
        reached: the parameters of the student that it reaches at all.
    """

    name: str
    kind: str
    weight: float
    value: float
    norm: float
    reached: int


def pulls(examination: Examination) -> list[Pull]:
    """Every term that is active at the start, with its value and its gradient.

    One backward pass per term; neither weights nor `.grad` are touched. Terms are compared where they compete: on the
    parameters that all of those reach which reach any; on all parameters where there are none such.
    """
    objective = examination.objective
    parameters = [parameter for parameter in examination.student.parameters() if parameter.requires_grad]
    weights = objective.weights(0.0)
    values: dict[str, list[float]] = {}
    squares: dict[str, list[dict[int, float]]] = {}
    scale = _HALF if examination.trainer.accelerator.mixed_precision == "fp16" else 1.0
    for inputs in examination.batches[:TERM_BATCHES]:
        for name, value in examination.values(inputs).items():
            values.setdefault(name, []).append(float(value.detach()))
            squares.setdefault(name, []).append(_squares(value, parameters, scale))
    reach = {name: set().union(*found) for name, found in squares.items()}
    common = set.intersection(*(found for found in reach.values() if found)) if any(reach.values()) else set()
    found = []
    for name, batches in squares.items():
        norms = [
            math.sqrt(sum(square for at, square in each.items() if at in common or not common)) for each in batches
        ]
        norm, kind = abs(weights[name]) * fmean(norms), type(objective[name]).__name__
        found.append(Pull(name, kind, weights[name], fmean(values[name]), norm, len(reach[name])))
    return found


def examined_terms(examination: Examination) -> Findings:
    """Broken, inert and drowning terms, each with what to do; one line with all figures."""
    if not any(parameter.requires_grad for parameter in examination.student.parameters()):
        advice = "Unfreeze what is to learn (requires_grad_(True))."
        return Findings([Finding("terms", "error", "no parameter of the student requires a gradient.", advice)])
    found, names = Findings(), list(examination.objective)
    terms = pulls(examination)
    listed = "; ".join(f"{term.name} {term.value:.4g}, gradient {term.norm:.3g}" for term in terms)
    figures = {term.name: {**vars(term)} for term in terms}
    message = f"values and weighted gradient norms at the start: {listed}."
    found.append(Finding("terms", "ok", message, figures=figures))
    if later := [name for name in names if name not in figures]:
        found.append(Finding("terms", "note", f"the weight of {', '.join(later)} is 0 at the start; not looked at."))
    broken = [term for term in terms if not (math.isfinite(term.value) and math.isfinite(term.norm))]
    found += [_broken(term) for term in broken]
    sound = [term for term in terms if term not in broken]
    if len(sound) < 2:
        found += [_silent(term) for term in sound if term.norm <= _NOTHING]
        reason = f"{len(sound)} usable term{'s' * (len(sound) != 1)}, so none can drown another"
        return Findings([*found, not_applicable("balance", reason)])
    return Findings([*found, *_balance(sound)])


def _balance(terms: list[Pull]) -> Findings:
    """Which of several sound terms are silent, hardly count, or drown the others; of two the weaker one is named."""
    noise = _ROUNDING * max(term.norm / abs(term.weight) for term in terms)
    silent = [term for term in terms if term.norm / abs(term.weight) <= noise]
    heard = [term for term in terms if term not in silent]
    found = Findings(_silent(term) for term in silent)
    others = {term.name: [other.norm for other in heard if other is not term] for term in heard}
    if len(heard) < 2:
        return found
    inert = [term for term in heard if term.norm < INERT * median_low(others[term.name])]
    loud = [term for term in heard if term.norm > DROWNS * median_high(others[term.name])]
    for term in inert:
        target = median_low(others[term.name])
        found.append(_unbalanced(term, target, f"hardly counts: its gradient is {term.norm / target:.1e} of theirs"))
    for term in loud if len(inert) + len(loud) < len(heard) or not inert else ():
        target = median_high(others[term.name])
        message = f"drowns the others: its gradient is {term.norm / target:.0f} times theirs"
        found.append(_unbalanced(term, target, message))
    return found


def _squares(value: Tensor, parameters: list[nn.Parameter], scale: float) -> dict[int, float]:
    """Position of each parameter that a value reaches -> the squared norm of its gradient."""
    if not value.requires_grad:
        return {}
    gradients: Any = torch.autograd.grad(value * scale, parameters, retain_graph=True, allow_unused=True)
    held = {
        at: (gradient.double() / scale).square().sum() for at, gradient in enumerate(gradients) if gradient is not None
    }
    return {at: float(square) for at, square in held.items()}


def _named(term: Pull) -> str:
    return f"objective term {term.name!r} ({term.kind})"


def _broken(term: Pull) -> Finding:
    what = f"is {term.value}" if not math.isfinite(term.value) else f"has a gradient of {term.norm}"
    return Finding(
        "terms",
        "error",
        f"{_named(term)} {what} on the first batches: the student would be NaN after one step.",
        "Look at those rows (no valid token, a constant feature), at half precision, and at the loss's parameters.",
        {"name": term.name, "value": term.value, "norm": term.norm},
    )


def _silent(term: Pull) -> Finding:
    return Finding(
        "terms",
        "warning",
        f"{_named(term)} has no gradient for the student ({term.norm:.1g}): it teaches nothing at the start.",
        "Look whether the student equals the teacher where it compares them, whether all labels or tokens are masked, "
        "and whether what it compares is frozen; no weight helps.",
        {"name": term.name, "norm": term.norm, "weight": term.weight},
    )


def _unbalanced(term: Pull, target: float, message: str) -> Finding:
    suggested = float(f"{term.weight * target / term.norm:.2g}")
    return Finding(
        "terms",
        "warning",
        f"{_named(term)} {message} ({term.norm:.3g} against {target:.3g}) at the start.",
        f"With weight={suggested:g} instead of {term.weight:g} it would be as large as the others. Weights of a paper "
        "may be meant so: then watch loss/<name> of all terms fall.",
        {"name": term.name, "norm": term.norm, "others": target, "weight": term.weight, "suggested_weight": suggested},
    )
