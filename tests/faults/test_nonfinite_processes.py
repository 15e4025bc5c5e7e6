"""NaN in one of two processes: both stop, or both leave the update out, and both know why."""

import json
from pathlib import Path
from typing import Any

import pytest
from launching import in_two_processes
from safetensors.torch import load_file
from training_toys import largest_difference

pytestmark = pytest.mark.slow

Told = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes wrote."""
    folder = tmp_path_factory.mktemp("nonfinite")
    in_two_processes(str(Path(__file__).with_name("nonfinite_processes.py")), str(folder))
    return folder


def told(folder: Path, case: str) -> Told:
    """What each process wrote of a case."""
    return [json.loads((folder / f"{case}-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def difference(folder: Path, case: str, other: str = "") -> float:
    """Between the weights of both processes, or those of the first in two cases."""
    names = (f"{case}-0", f"{other}-0") if other else (f"{case}-0", f"{case}-1")
    return largest_difference(*(load_file(folder / f"{name}.safetensors") for name in names))


@pytest.mark.parametrize(("case", "step"), [("stop", 1), ("waiting", 4)])
def test_both_stop_with_the_same_words(folder: Path, case: str, step: int) -> None:
    """One that ends alone leaves the other waiting for it, and says nothing to who looks at the first one's log."""
    one, two = told(folder, case)
    assert one["error"] == two["error"]
    kind, message = one["error"]
    assert kind == "NonFiniteError"
    assert message.startswith("objective term 'odd' (process 1, micro-batch 0, ")
    assert "in the batch of step 1." in message
    assert (one["step"], two["step"]) == (step, step)
    assert difference(folder, case) == 0.0
    assert all(value.isfinite().all() for value in load_file(folder / f"{case}-0.safetensors").values())


def test_both_leave_the_same_update_out(folder: Path) -> None:
    """Students that do not make the same updates are not one student."""
    one, two = told(folder, "skip")
    assert one["error"] is two["error"] is None
    assert [line["skipped_updates"] for line in one["log"]] == [0, 1, 0, 0]
    assert difference(folder, "skip") == 0.0


def test_weights_stay_those_before_the_step(folder: Path) -> None:
    """On an accelerator, too, where the stop comes three steps later."""
    assert difference(folder, "waiting", "sound") == 0.0
    assert difference(folder, "stop", "sound") > 0.0, "everything is equal here"


@pytest.mark.parametrize("case", ["teacher", "teacher of no term"])
def test_both_stop_for_the_teacher_of_one(folder: Path, case: str) -> None:
    """Its numbers are looked at in each process alone, and the other must not wait for it for half an hour."""
    one, two = (line["error"] for line in told(folder, case))
    assert one[0] == two[0] == "ValueError"
    assert "the teacher's numbers held NaN or inf on process 1, in the batch of step 1" in one[1]
    assert ("hidden_states[3]" if "no term" in case else "logits") in two[1]
    assert "teacher_dtype" in two[1]
    assert difference(folder, case) == 0.0
