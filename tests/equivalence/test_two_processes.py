"""Two processes with half of the batch each must make the step that one process makes with all of it.

Contrastive losses are left out: their negatives are the other rows of a process's own share of the batch.
"""

import json
from pathlib import Path

import pytest
import two_processes
from launching import in_two_processes
from safetensors.torch import load_file
from training_toys import largest_difference

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and what two processes wrote."""
    folder = tmp_path_factory.mktemp("processes")
    two_processes.run(folder, 1)
    in_two_processes(two_processes.__file__, str(folder), "2")
    return folder


@pytest.mark.parametrize("case", two_processes.CASES)
def test_two_processes_make_the_step_of_one(folder: Path, case: str) -> None:
    """The number of machines must change neither the student, nor the projectors, nor the curves."""
    one = load_file(folder / f"{case}-1-0.safetensors")
    for rank in (0, 1):
        two = load_file(folder / f"{case}-2-{rank}.safetensors")
        assert largest_difference(one, two) < 1e-6, f"process {rank}"
    one_log, two_log = (json.loads((folder / f"{case}-{count}.json").read_text()) for count in (1, 2))
    assert two_log == pytest.approx(one_log, rel=1e-5, abs=1e-6)
