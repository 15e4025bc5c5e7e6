"""The package gives the golden values: every case of the shared file, and a few worked out by hand."""

import json
import math
import os
from pathlib import Path
from typing import Any

import golden
import pytest

# Where conftest.py looks too; read here because the cases are parameters, which fixtures cannot give.
SHARED = Path(os.environ.get("HFDISTILL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
FILE = SHARED / "methods" / "golden.json"
CASES = golden.read_cases(FILE) if FILE.is_file() else []
BY_HAND: list[tuple[str, dict[str, Any], dict[str, Any], float]] = [
    ("kd_kl", {"s": [[0, 0]], "t": [[math.log(3), 0]]}, {}, 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
    ("kd_kl", {"s": [[0, 0]], "t": [[2 * math.log(3), 0]]}, {"T": 2.0}, 3 * math.log(1.5) + math.log(0.5)),
    ("soft_ce", {"s": [[0, 0]], "t": [[5, -1]]}, {"T": 7.0}, math.log(2)),
    ("soft_ce_elementmean", {"s": [[0, 0]], "t": [[5, -1]]}, {}, math.log(2) / 2),
    ("reverse_kl", {"s": [[0, 0]], "t": [[math.log(3), 0]]}, {}, math.log(4 / 3) / 2),
    ("logit_mse", {"s": [[3, 1]], "t": [[1, 1]]}, {"T": 2.0}, 0.5),
    ("hint_mse", {"s": [[[1, 1], [9, 9]]], "t": [[[0, 0], [0, 0]]], "mask": [[1, 0]]}, {}, 1.0),
    ("pkd", {"s": [[[3, 0]]], "t": [[[-1, 0]]]}, {}, 2.0),
    ("pkd_paper", {"s": [[[3, 0]]], "t": [[[-1, 0]]]}, {}, 4.0),
    ("tinybert_att", {"s": [[[[-10000, 2], [0, 0]]]], "t": [[[[0, 0], [0, -200]]]]}, {}, 1.0),
    ("att_mse_masked", {"s": [[[[1, 9], [9, 9]]]], "t": [[[[3, 0], [0, 0]]]], "mask": [[1, 0]]}, {}, 4.0),
    # One sample, one head, keys e_1 and 0: the student's rows are softmax([1, 0]) and uniform, the teacher's uniform.
    (
        "relation_kl",
        {"xs": [[[1], [0]]], "ys": [[[1], [0]]], "xt": [[[0], [0]]], "yt": [[[0], [0]]], "heads": 1},
        {},
        (math.log(1 + math.e) - 0.5 - math.log(2)) / 2,
    ),
    ("cos_nce", {"zs": [[1, 0]], "zt": [[2, 0]], "neg": [[[-1, 0], [0, 3]]]}, {}, 0.25),
    ("cos_nce", {"zs": [[1, 0]], "zt": [[0, 2]], "neg": [[]]}, {}, 1.0),
]


def case_of(oracle: str, inputs: dict[str, Any], kwargs: dict[str, Any], expected: Any, **more: Any) -> golden.Case:
    return {"id": f"test/{oracle}", "oracle": oracle, "inputs": inputs, "kwargs": kwargs, "expected": expected, **more}


def write(folder: Path, *cases: golden.Case) -> str:
    file = folder / "cases.json"
    file.write_text(json.dumps({"cases": cases}))
    return str(file)


@pytest.mark.data
@pytest.mark.parametrize("case", CASES or [pytest.param(None, id="no file")], ids=lambda case: case["id"])
def test_golden_values_of_the_shared_file(case: golden.Case | None) -> None:
    """They were checked against the reference implementations: to leave them is to leave the published methods."""
    if case is None:
        pytest.skip(f"needs the golden values; {FILE} is absent, point HFDISTILL_SHARED at the shared folder")
    assert case["oracle"] in golden.ORACLES, "no oracle: the formula is missing, or tests/oracles/ does not name it"
    outcome = golden.run(case)
    assert not outcome.disagreements
    assert outcome.gradients == ("grad" in case)


@pytest.mark.parametrize(("oracle", "inputs", "kwargs", "expected"), BY_HAND)
def test_values_by_hand(oracle: str, inputs: dict[str, Any], kwargs: dict[str, Any], expected: float) -> None:
    """Numbers that a reader can check on paper need no file and no trust."""
    assert not golden.run(case_of(oracle, inputs, kwargs, expected)).disagreements


KD = ("kd_kl", {"s": [[0.0, 0.0]], "t": [[1.0, 0.0]]}, {"T": 1.0})
KD_VALUE = 0.11094407167172735  # p = 1 / (1 + e^-1); p ln 2p + (1 - p) ln 2(1 - p)
KD_GRADIENT = [[-0.2310585786300049, 0.2310585786300049]]  # 1/2 - p


def test_command_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An oracle that nobody implements yet is news, not a failure; a gradient is compared and counted."""
    gradient = {"wrt": "s", "value": KD_GRADIENT, "atol": 1e-12}
    file = write(tmp_path, case_of(*KD, KD_VALUE, grad=gradient), case_of("no_such_oracle", {}, {}, 0))
    assert golden.main([file]) == 0
    printed = capsys.readouterr().out
    assert "2 cases, 2 chosen, 1 known, 1 agree" in printed
    assert "1 of 1 gradients agree" in printed
    assert "not known (1): test/no_such_oracle" in printed


@pytest.mark.parametrize(
    ("expected", "gradient"),
    [
        (KD_VALUE + 1e-8, KD_GRADIENT),
        (float("nan"), KD_GRADIENT),
        ([KD_VALUE], KD_GRADIENT),
        (KD_VALUE, [[-0.23, 0.23]]),
        (KD_VALUE, KD_GRADIENT[0]),
    ],
    ids=["value", "NaN", "shape", "gradient", "gradient's shape"],
)
def test_command_reports_a_disagreement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], expected: Any, gradient: Any
) -> None:
    """A comparison that cannot fail would let every formula pass."""
    file = write(tmp_path, case_of(*KD, expected, grad={"wrt": "s", "value": gradient, "atol": 1e-9}))
    assert golden.main([file, "--json"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["agree"] == 0
    assert {item["id"] for item in summary["disagreements"]} == {"test/kd_kl"}


def test_command_reports_an_error_of_the_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One case that the package refuses must not hide the others."""
    file = write(tmp_path, case_of("kd_kl", KD[1], {"T": 0.0}, 0.0), case_of(*KD, KD_VALUE))
    assert golden.main([file]) == 1
    printed = capsys.readouterr().out
    assert "2 known, 1 agree" in printed
    assert "ValueError: expected a temperature above 0" in printed


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"cases": []}', '{"cases": [3]}', '{"cases": [{"id": "a", "oracle": "kd_kl", "inputs": {}}]}'],
)
def test_command_refuses_an_ill_formed_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    """A truncated file that counted as agreement would be noticed by nobody."""
    file = tmp_path / "cases.json"
    file.write_text(content)
    assert golden.main([str(file)]) == 2
    assert str(file) in capsys.readouterr().err


def test_command_refuses_to_run_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file and a misspelt prefix would otherwise look like success."""
    assert golden.main([str(tmp_path / "absent.json")]) == 2
    assert golden.main([write(tmp_path, case_of(*KD, KD_VALUE)), "--only", "kd-kl"]) == 2
    assert "kd-kl" in capsys.readouterr().err


def test_inputs_under_other_names_go_by_position() -> None:
    """The file promises positional order, not the names of its arguments."""
    inputs = {"student": KD[1]["s"], "teacher": KD[1]["t"], "temperature": 1.0}
    assert not golden.run(case_of("kd_kl", inputs, {}, KD_VALUE)).disagreements
