"""Golden values: do the package's own functions give the numbers that are known to be right?

    python tests/golden.py FILE [--only PREFIX ...] [--json]

A file holds cases: an oracle's name, inputs (nested lists and scalars, in positional order), keyword arguments, what
to expect and, for some, a gradient. The folder oracles/ maps names to calls of the package. Every case runs in
float64, and with a scalar result in float32 too. Exit status: 0 all known cases agree, 1 some disagree, 2 the file is
missing or ill-formed, or --only matches nothing. Oracles without an entry are listed as not known; no failure.
"""

import argparse
import inspect
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, without installing

from oracles import ORACLES

Case = dict[str, Any]
# Tolerance and the size below which it becomes absolute: 1e-9 relative and 1e-12 absolute in float64.
PRECISIONS = {torch.float64: (1e-9, 1e-3), torch.float32: (2e-5, 5e-2)}


class IllFormedError(Exception):
    """The file is missing, or not a file of golden cases."""


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


def tensors(value: list[Any], dtype: torch.dtype) -> Any:
    """A nested list as a tensor, or, where its entries are of several shapes (layers), as a list of them."""
    try:
        return torch.tensor(value, dtype=dtype)
    except (TypeError, ValueError):
        return [tensors(entry, dtype) for entry in value]


def evaluate(case: Case, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """Call the package on a case's inputs; return the result, taken as the case says, and the inputs as given."""
    inputs = {
        name: tensors(value, dtype) if isinstance(value, list) else value for name, value in case["inputs"].items()
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
