"""Two processes that gather their rows must get the loss and the gradients that one process gets with all of them."""

import gather
import pytest
import torch
from gather import CASES, GATHERING, Results
from launching import in_two_processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    """What one process and what each of two got, by the name of its file."""
    folder = tmp_path_factory.mktemp("gather")
    gather.run(folder)
    in_two_processes(gather.__file__, str(folder))
    return {file.stem: torch.load(file) for file in sorted(folder.iterdir())}


def test_both_processes_took_part(results: dict[str, Results]) -> None:
    """Two processes that each think they are alone would agree with one, too."""
    assert list(results) == ["1-0", "2-0", "2-1"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", GATHERING)
def test_gathered_rows_are_one_batch(results: dict[str, Results], name: str, case: str) -> None:
    """Relations between rows depend on the batch; spread over processes it must still be the same batch."""
    one = results["1-0"][case][name]
    assert any(tensor.any() for key, tensor in one.items() if key != "value")
    for rank in (0, 1):
        two = results[f"2-{rank}"][case][name]
        for key in one.keys() | two.keys():
            ours, theirs = two.get(key), one.get(key)
            ours = torch.zeros_like(theirs) if ours is None else ours
            theirs = torch.zeros_like(ours) if theirs is None else theirs
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
