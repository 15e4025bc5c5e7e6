"""One global batch is one step: whatever cuts it into processes and micro-batches, and whether layers run twice.

The largest differences are printed (`pytest -rP`). A loss over the relations between rows sees a micro-batch of all
processes: cut by accumulation it relates fewer rows, by definition, so there two processes are held to one with the
same micro-batches, not to one with the whole batch. Curves, evaluation and longer runs: test_two_processes.py.
"""

import json
from functools import cache
from pathlib import Path

import exactness
import pytest
from launching import in_two_processes
from safetensors.torch import load_file
from torch import Tensor
from training_toys import largest_difference

pytestmark = pytest.mark.slow

WAYS = [(processes, cuts) for processes, cutting in exactness.CUTS.items() for cuts in cutting]
GRADIENT, WEIGHT = 1e-7, 1e-8
"""Largest difference of a gradient (these are of the order of 1) and of a weight (SGD, learning rate 0.1); the models
are float64, the shares of the micro-batches float32."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and what two processes wrote."""
    folder = tmp_path_factory.mktemp("exactness")
    exactness.run(folder, 1)
    in_two_processes(exactness.__file__, str(folder), "2")
    return folder


@cache
def parts(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients, and weights, of one step."""
    found = load_file(path)
    gradients = {name: value for name, value in found.items() if name.startswith("gradient.")}
    return gradients, {name: found[name] for name in found.keys() - gradients.keys()}


def of(folder: Path, name: str, processes: int, cuts: int, how: str, rank: int = 0) -> Path:
    """Where a step was written."""
    return folder / f"{name}-{processes}x{cuts}-{how}-{rank}.safetensors"


@pytest.mark.parametrize("how", ["kept", "recomputed"])
@pytest.mark.parametrize(("processes", "cuts"), WAYS, ids=[f"{processes}x{cuts}" for processes, cuts in WAYS])
@pytest.mark.parametrize("name", exactness.OBJECTIVES)
def test_gradients_of_a_step_do_not_depend_on_how_it_is_cut(
    folder: Path, name: str, processes: int, cuts: int, how: str
) -> None:
    """Who buys a second machine, or cuts the batch to fit a small one, must not get another student."""
    expected = parts(of(folder, name, 1, cuts if name == "relation" else 1, "kept"))
    assert max(float(value.abs().max()) for value in expected[0].values()) > 0.01, "no gradient, nothing is compared"
    for rank in range(processes):
        found = parts(of(folder, name, processes, cuts, how, rank))
        gradient, weight = (largest_difference(*pair) for pair in zip(expected, found, strict=True))
        print(f"{name:8} {processes} x {cuts} {how:10} process {rank}: gradient {gradient:.1e}, weight {weight:.1e}")
        assert gradient < GRADIENT
        assert weight < WEIGHT


@pytest.mark.parametrize("strategy", exactness.STRATEGIES)
def test_an_epoch_of_two_processes_shows_each_row_once(folder: Path, strategy: str) -> None:
    """If each process drew an order of its own, rows would come twice and others never, from the second epoch on."""
    ours, theirs = (json.loads((folder / f"rows-2-{rank}.json").read_text())[strategy] for rank in (0, 1))
    assert len(ours) == 3
    for mine, other in zip(ours, theirs, strict=True):
        assert sorted([*mine, *other]) == list(range(exactness.ROWS_OF_EPOCH))
    assert len({tuple(epoch) for epoch in ours}) == 3, "every epoch showed the same order"


def test_what_learns_is_compared(folder: Path) -> None:
    """Projectors must be among the gradients, or the test above would say nothing about them."""
    for name, part in (
        ("sequence", "classifier"),
        ("token", "distillation_objective"),
        ("relation", "distillation_objective"),
    ):
        gradients, _ = parts(of(folder, name, 2, 1, "kept"))
        assert any(part in key and value.any() for key, value in gradients.items()), name


def test_accumulation_makes_smaller_relations(folder: Path) -> None:
    """If it did not, holding the relational objective to the same micro-batches would be a way to pass."""
    whole, cut = (parts(of(folder, "relation", 1, cuts, "kept"))[0] for cuts in (1, 2))
    assert largest_difference(whole, cut) > 1e-3
