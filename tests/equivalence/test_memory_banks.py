"""Two processes must remember the same rows, and contrast a batch that is spread over them as one process does."""

from pathlib import Path

import memory_banks
import pytest
import torch
from launching import in_two_processes
from safetensors.torch import load_file
from torch import Tensor
from toy_models import toy_bert
from training_toys import largest_difference, text_rows, trainer_of, weights_of

from hfdistill import Objective
from hfdistill.losses.relation.contrastive_memory import ContrastiveMemoryLoss
from hfdistill.losses.relation.contrastive_relation import ContrastiveRelationLoss

pytestmark = pytest.mark.slow
BANKS = [f"losses.{name}.banks.0.{side}" for name in ("crd", "crcd") for side in ("student", "teacher")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and what two processes wrote."""
    folder = tmp_path_factory.mktemp("processes")
    memory_banks.run(folder, 1)
    in_two_processes(memory_banks.__file__, str(folder), "2")
    return folder


def written(folder: Path, case: str, processes: int) -> list[dict[str, Tensor]]:
    """What each process wrote."""
    return [load_file(folder / f"{case}-{processes}-{rank}.safetensors") for rank in range(processes)]


def test_every_process_ends_with_the_same_memory(folder: Path) -> None:
    """Each sees other rows: a memory of its own would make it another loss on every process."""
    first, second = written(folder, "trained", 2)
    assert largest_difference(first, second) == 0.0
    for name in BANKS:
        changed = (first[name] != first[f"begun.{name}"]).any(1)
        assert changed.sum() > memory_banks.STEPS * 2, "only rows of one process were remembered"
    assert first["losses.crd.banks.0.log_constants"].isfinite().all()


def test_two_processes_remember_the_rows_of_one(folder: Path) -> None:
    """The same global batches: what was seen, if not what was drawn, is the same."""
    one, two = written(folder, "trained", 1)[0], written(folder, "trained", 2)[0]
    for name in BANKS:
        seen = [(state[name] != state[f"begun.{name}"]).any(1).tolist() for state in (one, two)]
        assert seen[0] == seen[1]


@pytest.mark.parametrize("case", memory_banks.GATHERED)
def test_a_gathered_batch_is_one_batch(folder: Path, case: str) -> None:
    """Value, gradient of the layers and of each process's own rows, where the shares differ and one row is empty."""
    (one,), two = written(folder, case, 1), written(folder, case, 2)
    assert one["rows"].any()
    for rank, found in enumerate(two):
        own = found.pop("rows")
        expected = one["rows"][memory_banks.SHARES[rank], : own.shape[1]]
        torch.testing.assert_close(own / 2, expected, rtol=1e-4, atol=1e-6)  # averaged with a process without them
        torch.testing.assert_close(found, {name: one[name] for name in found}, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_remembers(tmp_path: Path) -> None:
    """A checkpoint holds memories and constants: to the last bit the run that was never stopped."""

    def trainer(where: Path, seed: int):  # type: ignore[no-untyped-def]
        torch.manual_seed(seed)
        objective = Objective(crd=ContrastiveMemoryLoss(4, dimension=8), crcd=ContrastiveRelationLoss(4, dimension=8))
        options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
        return trainer_of(where, objective, toy_bert(width=8, seed=0), text_rows(memory_banks.ROWS), **options)

    whole, rest = trainer(tmp_path, 1), trainer(tmp_path / "resumed", 2)
    whole.train()
    assert largest_difference(weights_of(rest.objective), weights_of(whole.objective)) > 1e-3
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert largest_difference(weights_of(rest.objective), weights_of(whole.objective)) == 0.0
    assert largest_difference(weights_of(rest.model), weights_of(whole.model)) == 0.0
