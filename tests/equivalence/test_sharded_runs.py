"""FSDP2, ZeRO-2 and ZeRO-3 must train, save and resume the student that one process trains, with its projectors."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sharded_runs
from launching import in_two_processes
from safetensors.torch import load_file
from torch import Tensor
from training_toys import largest_difference
from transformers import AutoModelForTokenClassification

from hfdistill.objective_state import OBJECTIVE_STATE

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
HALF = pytest.approx(0.5, abs=0.01)
SHARES = {"fsdp2": (HALF, HALF), "zero2": (1.0, 1.0), "zero3": (HALF, HALF)}
"""Share of the student's and of the teacher's parameters that one of two processes holds."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process wrote."""
    folder = tmp_path_factory.mktemp("plain")
    sharded_runs.run(folder, "plain", 1)
    return folder


@pytest.fixture(scope="module", params=SHARES)
def sharded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A mode, and what two processes wrote in it."""
    mode: str = request.param
    if mode.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("needs DeepSpeed: pip install 'hfdistill[deepspeed]'")
    folder = tmp_path_factory.mktemp(mode)
    in_two_processes(sharded_runs.__file__, str(folder), mode, "2")
    return mode, folder


def written(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and facts of a run."""
    return load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text())


def cases(mode: str) -> list[str]:
    """The runs of a mode."""
    return [case for case in sharded_runs.CASES if sharded_runs.runs(mode, case)]


def test_the_step_of_one_process(plain: Path, sharded: tuple[str, Path]) -> None:
    """Gradients, weights and losses of student and projectors, however the parameters are spread.

    With the teacher whole or in shards, accumulation, rows gathered over processes, terms that are over after half of
    the steps, clipping, and models that transformers loads in pieces.
    """
    mode, folder = sharded
    for case in cases(mode):
        (one, one_facts), (two, facts) = written(plain, f"{case}-plain"), written(folder, f"{case}-{mode}")
        assert any("gradient." in name for name in one) == (sharded_runs.CASES[case][1].get("max_steps") == 1)
        print(f"{mode}, {case}: largest difference {largest_difference(one, two):.1e}")
        assert largest_difference(one, two) < 1e-6, case
        assert facts["log"] == [pytest.approx(line, rel=1e-5, abs=1e-6) for line in one_facts["log"]], case
        assert facts["evaluated"] == pytest.approx(one_facts["evaluated"], rel=1e-5)


def test_shards_are_shards(sharded: tuple[str, Path]) -> None:
    """Two processes that hold everything twice would give equal weights, too."""
    mode, folder = sharded
    facts = written(folder, f"gradient-{mode}")[1]
    assert (facts["student"], facts["teacher"]) == SHARES[mode]
    assert written(folder, f"whole teacher-{mode}")[1]["teacher"] == 1.0


def test_a_saved_student_is_plain(sharded: tuple[str, Path]) -> None:
    """It must load anywhere, whole and without the objective, also where checkpoints are kept in shards."""
    mode, folder = sharded
    for case in cases(mode):
        trained = {n: v for n, v in written(folder, f"{case}-{mode}")[0].items() if n.startswith(("bert", "class"))}
        model, info = AutoModelForTokenClassification.from_pretrained(
            folder / f"{case}-{mode}" / "final", output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"], "something of the objective was saved with the student"
        assert largest_difference(trained, dict(model.state_dict())) == 0.0


def test_a_resumed_run_is_the_uninterrupted_one(sharded: tuple[str, Path]) -> None:
    """From the middle, begun with another student and other projectors."""
    mode, folder = sharded
    for case in (case for case in cases(mode) if case.startswith("saved")):
        (whole, facts), (resumed, resumed_facts) = (
            written(folder, f"{name}-{mode}") for name in (case, f"{case}, resumed")
        )
        print(f"{mode}, {case}, resumed: largest difference {largest_difference(whole, resumed):.1e}")
        assert largest_difference(whole, resumed) < 1e-7
        assert resumed_facts["log"] == [pytest.approx(line, rel=1e-6) for line in facts["log"]]


def test_the_objective_is_saved_whole(sharded: tuple[str, Path]) -> None:
    """A shard of a projector, or an empty one, would pass for the objective's state."""
    mode, folder = sharded
    for case in (case for case in cases(mode) if case.startswith("saved")):
        end = written(folder, f"{case}-{mode}")[0]
        saved = load_file(folder / f"{case}-{mode}" / "checkpoint-4" / OBJECTIVE_STATE)
        assert saved
        assert largest_difference(saved, {name: end[f"objective.{name}"] for name in saved}) == 0.0


EXPECTED = {
    "fsdp2": {
        "other_student": "process 1 has other weights of the student",
        "other_teacher": "process 1 has other weights of the teacher",
        "in_stages": "freezes a part of the student",
    },
    "zero3": {"partitioned": "Pass the teacher's name or folder"},
}


def test_what_would_go_wrong_is_refused(sharded: tuple[str, Path]) -> None:
    """In every process, or the others would wait for ever."""
    mode, folder = sharded
    for rank in (0, 1) if mode in EXPECTED else ():
        told = json.loads((folder / f"refused-{mode}-{rank}.json").read_text())
        assert told.keys() == EXPECTED[mode].keys()
        for name, part in EXPECTED[mode].items():
            assert part in told[name]
