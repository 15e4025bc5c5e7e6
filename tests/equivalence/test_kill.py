"""A run that is killed again and again, saves included, must end as the run that was left alone, bit by bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import interrupted
import pytest
import torch
from safetensors.torch import load_file
from training_toys import largest_difference

from hfdistill.checkpoints.folders import checkpoints, flaw
from hfdistill.objective_state import OBJECTIVE_STATE

pytestmark = pytest.mark.slow
KILLS, SEED = 20, 0
LAST = f"checkpoint-{KILLS * interrupted.STEPS_PER_KILL}"
OF_THE_CLOCK = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both runs, and what was killed when."""
    folder = tmp_path_factory.mktemp("killed")
    tests = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (tests, tests.parent)))}
    words = [sys.executable, interrupted.__file__, str(folder), str(KILLS), str(SEED)]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return folder


def test_the_kills_hit_training_and_saving(folder: Path) -> None:
    """A run that was never killed while it saved would prove nothing about half a checkpoint."""
    told = json.loads((folder / "kills.json").read_text(encoding="utf-8"))
    assert sum(kill["killed"] for kill in told) == KILLS
    during_a_save = [kill for kill in told if kill["unfinished"]]
    assert len(during_a_save) >= 3
    assert len(told) - len(during_a_save) >= 3


@pytest.mark.parametrize("name", ["model.safetensors", OBJECTIVE_STATE])
def test_student_and_objective_are_those_of_the_run_left_alone(folder: Path, name: str) -> None:
    """Weights, projectors and memory banks after 20 kills."""
    killed, whole = (load_file(folder / run / LAST / name) for run in ("killed", "whole"))
    assert largest_difference(killed, whole) == 0.0
    before = load_file(folder / "whole" / f"checkpoint-{int(LAST.split('-')[1]) - 1}" / name)
    assert largest_difference(before, whole) > 0.0, "the last step changed nothing: nothing was compared"


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt"])
def test_optimizer_and_schedule_are_those_of_the_run_left_alone(folder: Path, name: str) -> None:
    """The next step, too, would be the same."""
    killed, whole = (torch.load(folder / run / LAST / name, weights_only=True) for run in ("killed", "whole"))
    torch.testing.assert_close(_plain(killed), _plain(whole), rtol=0, atol=0)


def test_logs_are_those_of_the_run_left_alone(folder: Path) -> None:
    """Every line, where most of the kills fell between two of them; the clock's figures aside."""
    killed, whole = (_log(folder / run / LAST) for run in ("killed", "whole"))
    assert len(whole) == KILLS * interrupted.STEPS_PER_KILL // 3
    assert killed == whole


def test_only_complete_checkpoints_are_left(folder: Path) -> None:
    """Neither half a save nor half a removal stays behind."""
    found = checkpoints(folder / "killed")
    assert [path.name for path in found] == [path.name for path in checkpoints(folder / "whole")]
    assert [flaw(path) for path in found] == ["", ""]
    assert {path.name for path in (folder / "killed").iterdir()} == {path.name for path in found}


def _log(checkpoint: Path) -> list[dict[str, float]]:
    lines = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [{key: value for key, value in line.items() if key not in OF_THE_CLOCK} for line in lines]


def _plain(state: Any) -> Any:
    """The same without what assert_close does not compare (None, text)."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items() if value is not None}
    if isinstance(state, list | tuple):
        return [_plain(value) for value in state if value is not None]
    return state
