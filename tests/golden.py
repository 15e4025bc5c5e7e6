"""Golden values: do the package's own functions give the numbers that are known to be right?

    python tests/golden.py FILE [--only PREFIX ...] [--json]

A file holds cases: an oracle's name, inputs (nested lists and scalars, in positional order), keyword arguments, what
to expect and, for some, a gradient. ORACLES maps the names to calls of the package; it computes nothing that the
package has a function for. Every case runs in float64, and with a scalar result in float32 too. Exit status: 0 all
known cases agree, 1 some disagree, 2 the file is missing or ill-formed, or --only matches nothing. Oracles without an
entry are listed as not known; they are no failure.
"""

import argparse
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, without installing

from hfdistill import functional as F

Case = dict[str, Any]
IGNORED_LABEL = -100
# Tolerance and the size below which it becomes absolute: 1e-9 relative and 1e-12 absolute in float64.
PRECISIONS = {torch.float64: (1e-9, 1e-3), torch.float32: (2e-5, 5e-2)}


class IllFormedError(Exception):
    """The file is missing, or not a file of golden cases."""


def valid_labels(labels: Tensor | None) -> Tensor | None:
    return None if labels is None else labels != IGNORED_LABEL


def hinton_total(s: Tensor, t: Tensor, y: Tensor, T: float = 4.0, alpha: float = 0.9) -> Tensor:
    task = torch.nn.functional.cross_entropy(s, y.long(), ignore_index=IGNORED_LABEL)
    return (1 - alpha) * task + alpha * F.soft_target_kl(s, t, T, valid_labels(y))


def hint_mse(s: Tensor, t: Tensor, mask: Tensor | None = None, W: Tensor | None = None, b: Any = None) -> Tensor:
    return F.hidden_mse(s if W is None else torch.nn.functional.linear(s, W, b), t, mask)


def minilm_v1(
    qs: Tensor, ks: Tensor, vs: Tensor, qt: Tensor, kt: Tensor, vt: Tensor, heads: int, mask: Tensor | None = None
) -> Tensor:
    return F.relation_kl(qs, ks, qt, kt, heads, mask) + F.relation_kl(vs, vs, vt, vt, heads, mask)


def minilm_v2(
    qs: Tensor, ks: Tensor, vs: Tensor, qt: Tensor, kt: Tensor, vt: Tensor, heads: int, mask: Tensor | None = None
) -> Tensor:
    pairs = ((qs, qt), (ks, kt), (vs, vt))
    return torch.stack([F.relation_kl(own, own, theirs, theirs, heads, mask) for own, theirs in pairs]).mean()


def cos_nce(zs: Tensor, zt: Tensor, neg: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    if neg is None or not neg.numel():  # JSON writes (B, 0, D) as B empty lists
        neg = zs.new_zeros(zs.shape[0], 0, zs.shape[1])
    return F.cos_nce(zs, zt, neg, mask=mask)


def layer_map(name: str, *arguments: Any, **keywords: Any) -> Any:
    from hfdistill.layer_map import LayerMap

    return getattr(LayerMap, name)(*arguments, **keywords)


def map_uniform(Ls: int, Lt: int) -> list[list[tuple[int, int]]]:
    pairs = layer_map("uniform").resolve(Ls, Lt)
    attention = layer_map("uniform").without_embeddings().resolve(Ls, Lt)
    return [list(pairs), [(student - 1, teacher - 1) for student, teacher in attention]]


def map_dynabert(n: int, m: float) -> list[int]:
    return [teacher for _, teacher in layer_map("dynabert", m).resolve(round(m * n), n)]


# Arguments carry the file's own names: a case may leave out whatever has a default here.
ORACLES: dict[str, Callable[..., Any]] = {
    "kd_kl": lambda s, t, T=1.0, mask=None: F.soft_target_kl(s, t, T, mask),
    "soft_ce": lambda s, t, T=1.0, mask=None: F.soft_target_cross_entropy(s, t, T, mask),
    "soft_ce_elementmean": lambda s, t, T=1.0, mask=None: F.soft_target_cross_entropy(s, t, T, mask, "elementmean"),
    "hinton_total": hinton_total,
    "logit_mse": lambda s, t, T=1.0, mask=None: F.logit_mse(s, t, T, mask),
    "forward_kl": lambda s, t, labels=None, T=1.0: F.soft_target_kl(
        s, t, T, valid_labels(labels), scale_by_temperature=False
    ),
    "forward_ce": lambda s, t, labels=None, T=1.0: F.soft_target_cross_entropy(s, t, T, valid_labels(labels)),
    "reverse_kl": lambda s, t, labels=None, T=1.0: F.reverse_kl(s, t, T, valid_labels(labels)),
    "total_variation": lambda s, t, labels=None, T=1.0: F.total_variation(s, t, T, valid_labels(labels)),
    "hint_mse": hint_mse,
    "hidden_cos": lambda s, t, mask=None: F.hidden_cosine(s, t, mask),
    "pkd": lambda s, t, normalise=True: F.patience(s, t, normalise),
    "pkd_paper": lambda s, t, normalise=True: F.patience(s, t, normalise, "paper"),
    "tinybert_att": lambda s, t: F.attention_score_mse_tinybert(s, t),
    "att_mse_masked": lambda s, t, mask=None: F.attention_score_mse(s, t, mask),
    "relation_kl": lambda xs, ys, xt, yt, heads, mask=None: F.relation_kl(xs, ys, xt, yt, heads, mask),
    "minilm_v1": minilm_v1,
    "minilm_v2": minilm_v2,
    "cos_nce": cos_nce,
    "sp": lambda s, t: F.similarity_preserving(s, t),
    "fsp": lambda s1, s2, t1, t2, mask=None: F.flow_of_solution(s1, s2, t1, t2, mask),
    "triplet_kd": lambda t, sp, sn, margin=5.0: F.triplet(t, sp, sn, margin),
    "map_uniform": map_uniform,
    "map_pkd_skip": lambda Ls, Lt: layer_map("skip").resolve(Ls, Lt),
    "map_pkd_last": lambda Ls, Lt: layer_map("last", final=False).resolve(Ls, Lt),
    "map_dynabert": map_dynabert,
}


@dataclass
class Outcome:
    """What one case gave."""

    deviation: float = 0.0  # the larger of |got - expected| / max(|expected|, floor) over its values, in float64
    disagreements: list[tuple[str, Any, Any]] = field(default_factory=list)  # (what, got, expected)
    gradients: int = 0  # compared
    gradients_agree: int = 0


def read_cases(file: Path) -> list[Case]:
    """Return the file's cases.

    Raises:
        IllFormedError: There is no such file, or it does not hold golden cases.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise IllFormedError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise IllFormedError(f"{file} is not JSON: {error}") from error
    cases = content.get("cases") if isinstance(content, dict) else None
    if not isinstance(cases, list) or not cases:
        raise IllFormedError(f"{file} holds no cases: expected an object with a list 'cases' that is not empty")
    for number, case in enumerate(cases):
        if wrong := misstated(case):
            raise IllFormedError(f"{file}: case {number} lacks or misstates {', '.join(wrong)}")
    return cases


def misstated(case: Any) -> list[str]:
    """Return the keys that a case must have and lacks, or that hold something else than they should."""
    if not isinstance(case, dict):
        return ["everything: it is no object"]
    kinds = {"id": str, "oracle": str, "inputs": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(case.get(key), kind)]
    wrong += [] if "expected" in case else ["expected"]
    wrong += [] if isinstance(case.get("kwargs") or {}, dict) else ["kwargs"]
    gradient = case.get("grad")
    if gradient is not None and not wrong:
        whole = isinstance(gradient, dict) and {"wrt", "value"} <= gradient.keys()
        wrong += [] if whole and isinstance(case["inputs"].get(gradient["wrt"]), list) else ["grad"]
    return wrong


def deviation(got: Any, expected: Any, floor: float) -> float:
    """Return the largest |got - expected| / max(|expected|, floor), inf where shapes or kinds differ."""
    if isinstance(got, Tensor):
        got = got.detach().tolist()
    if isinstance(expected, list):
        if not isinstance(got, list | tuple) or len(got) != len(expected):
            return float("inf")
        return max((deviation(*pair, floor) for pair in zip(got, expected, strict=True)), default=0.0)
    if not isinstance(got, int | float) or not isinstance(expected, int | float):
        return 0.0 if got == expected else float("inf")
    if got == expected:
        return 0.0
    distance = abs(got - expected) / max(abs(expected), floor)
    return distance if distance == distance else float("inf")  # NaN


def evaluate(case: Case, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """Call the package on a case's inputs; return the result, taken as the case says, and the inputs as given."""
    inputs = {
        name: torch.tensor(value, dtype=dtype) if isinstance(value, list) else value
        for name, value in case["inputs"].items()
    }
    wrt = (case.get("grad") or {}).get("wrt")
    if isinstance(inputs.get(wrt), Tensor):
        inputs[wrt].requires_grad_()
    oracle, keywords = ORACLES[case["oracle"]], case.get("kwargs") or {}
    try:
        bound = inspect.signature(oracle).bind(**inputs, **keywords)
    except TypeError:  # other names for the same arguments: the order holds
        bound = inspect.signature(oracle).bind(*inputs.values(), **keywords)
    result = oracle(*bound.args, **bound.kwargs)
    return (result if case.get("take") is None else result[case["take"]]), inputs


def compare_gradient(case: Case, result: Any, inputs: dict[str, Any], outcome: Outcome) -> None:
    """Compare the result's gradient with respect to one input, within the case's absolute tolerance."""
    wanted, name = case["grad"]["value"], case["grad"]["wrt"]
    outcome.gradients += 1
    (got,) = torch.autograd.grad(result.sum(), inputs[name], allow_unused=True)
    got = torch.zeros_like(inputs[name]) if got is None else got
    expected = torch.tensor(wanted, dtype=got.dtype)
    gap = (got - expected).abs().max().item() if got.shape == expected.shape else float("inf")
    if gap <= case["grad"].get("atol", 1e-7):
        outcome.gradients_agree += 1
    else:
        outcome.disagreements.append((f"gradient wrt {name}, off by {gap:.3g}", got.tolist(), wanted))


def run(case: Case) -> Outcome:
    """Compare one case of a known oracle in float64, its gradient, and in float32 if the result is one number."""
    outcome, expected = Outcome(), case["expected"]
    for dtype, (tolerance, floor) in PRECISIONS.items():
        if dtype == torch.float32 and not isinstance(expected, int | float):
            continue
        name = str(dtype).removeprefix("torch.")
        try:
            result, inputs = evaluate(case, dtype)
            gap = deviation(result, expected, floor)
            if not gap <= tolerance:
                got = result.tolist() if isinstance(result, Tensor) else result
                outcome.disagreements.append((f"{name}, off by {gap:.3g}", got, expected))
            if dtype == torch.float64:
                outcome.deviation = gap
                if case.get("grad") is not None:
                    compare_gradient(case, result, inputs, outcome)
        except Exception as error:  # noqa: BLE001 whatever the package raises is this case's answer
            outcome.disagreements.append((name, f"{type(error).__name__}: {error}", expected))
    return outcome


def summarize(cases: list[Case], only: list[str]) -> dict[str, Any]:
    """Run the cases whose id starts with one of the prefixes; all without a prefix."""
    chosen = [case for case in cases if not only or case["id"].startswith(tuple(only))]
    outcomes = [(case["id"], run(case)) for case in chosen if case["oracle"] in ORACLES]
    results = [outcome for _, outcome in outcomes]
    return {
        "cases": len(cases),
        "chosen": len(chosen),
        "known": len(outcomes),
        "agree": sum(not outcome.disagreements for outcome in results),
        "worst_relative_deviation": max((outcome.deviation for outcome in results), default=0.0),
        "gradients": sum(outcome.gradients for outcome in results),
        "gradients_agree": sum(outcome.gradients_agree for outcome in results),
        "disagreements": [
            {"id": name, "what": what, "got": got, "expected": expected}
            for name, outcome in outcomes
            for what, got, expected in outcome.disagreements
        ],
        "not_known": [case["id"] for case in chosen if case["oracle"] not in ORACLES],
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description="Compare the package with golden values.")
    parser.add_argument("file", type=Path, metavar="FILE", help="a JSON file of golden cases")
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="PREFIX", help="ids to run")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    options = parser.parse_args(arguments)
    try:
        cases = read_cases(options.file)
    except IllFormedError as error:
        print(f"golden: {error}", file=sys.stderr)
        return 2
    summary = summarize(cases, options.only)
    if not summary["chosen"]:
        print(f"golden: no case of {options.file} starts with {' or '.join(options.only)}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(summary, indent=2))
        return 1 if summary["disagreements"] else 0
    print(f"{summary['cases']} cases, {summary['chosen']} chosen, {summary['known']} known, {summary['agree']} agree")
    print(f"worst relative deviation {summary['worst_relative_deviation']:.3g} (float64)")
    print(f"{summary['gradients_agree']} of {summary['gradients']} gradients agree")
    if summary["not_known"]:
        print(f"not known ({len(summary['not_known'])}): {', '.join(summary['not_known'])}")
    for item in summary["disagreements"]:
        print(f"DISAGREES {item['id']} ({item['what']}): got {item['got']}, expected {item['expected']}")
    return 1 if summary["disagreements"] else 0


if __name__ == "__main__":
    sys.exit(main())
