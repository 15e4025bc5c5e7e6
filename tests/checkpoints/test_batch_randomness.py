"""Masks and crops are the same whether a run was resumed or not, by workers or not, and differ between epochs."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from toy_models import toy_bert
from training_toys import collate, largest_difference, logged, text_rows, trainer_of, weights_of

from hfdistill import DistillationTrainer
from hfdistill.checkpoints.batch_randomness import BatchRandomness


class Noisy(Dataset[dict[str, Any]]):
    """Rows that are changed at random as they are read, as a transform does, by each generator that there is."""

    def __init__(self, count: int = 12) -> None:
        self.rows = list(text_rows(count))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = dict(self.rows[number])
        drawn = int(torch.randint(5, 64, ())) + random.randrange(64) + int(np.random.randint(64))
        return row | {"input_ids": [5 + (drawn + token) % 59 for token in row["input_ids"]]}


def masked(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """A collator that replaces tokens at random, as one for masked language models does."""
    batch = collate(rows)
    batch["input_ids"] = torch.where(torch.rand(batch["input_ids"].shape) < 0.3, 3, batch["input_ids"])
    return batch


def run(folder: Path, **changes: Any) -> DistillationTrainer:
    """Two epochs of six steps with dropout and two kinds of random batches; the log shows what the student saw."""
    student = toy_bert(hidden_dropout_prob=0.3)
    options: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "data_collator": masked}
    return trainer_of(folder, {"kd": {"loss": "SoftTargetLoss"}}, student, Noisy(), **(options | changes))


def end_workers(trainer: DistillationTrainer) -> None:
    """End workers that outlive an epoch; torch waits for each five seconds where the collector of garbage does it."""
    loader: Any = trainer.callback_handler.train_dataloader
    if loader.persistent_workers and loader.base_dataloader._iterator is not None:
        loader.base_dataloader._iterator._shutdown_workers()


WORKERS: list[dict[str, Any]] = [
    {"dataloader_num_workers": 0},
    {"dataloader_num_workers": 2},
    {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
]


@pytest.mark.parametrize("workers", WORKERS, ids=["none", "two", "persistent"])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_resumed_run_sees_the_batches_of_the_whole(tmp_path: Path, step: int, workers: dict[str, Any]) -> None:
    """In the middle of an epoch, at its end, and in the second: bit by bit."""
    whole = run(tmp_path, **workers)
    whole.train()
    end_workers(whole)
    rest = run(tmp_path / "rest", **workers)
    rest.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    end_workers(rest)
    assert largest_difference(weights_of(rest.model), weights_of(whole.model)) == 0.0
    assert logged(rest) == logged(whole)


@pytest.mark.parametrize("strategy", ["sequential", "group_by_length", "batch_rebalance"])
@pytest.mark.parametrize("step", [2, 3, 4, 5])
def test_a_resumed_run_has_the_order_of_the_whole(tmp_path: Path, strategy: str, step: int) -> None:
    """Rows grouped by length are shuffled, too: in the second epoch, when dropout has drawn, as in the first."""
    whole = run(tmp_path, train_sampling_strategy=strategy)
    whole.train()
    rest = run(tmp_path / "rest", train_sampling_strategy=strategy)
    rest.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert logged(rest) == logged(whole)


def test_groups_of_equal_length_are_shuffled_in_each_epoch() -> None:
    """The same order in each epoch, and for each seed, would be less than the Trainer gives."""
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (0, 0), (1, 0)):
        randomness = BatchRandomness(seed)
        randomness.begin_epoch(epoch)
        orders.append(torch.randperm(50, generator=randomness.order).tolist())
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert orders[0] != orders[3]


def test_workers_change_nothing(tmp_path: Path) -> None:
    """How many processes read the rows is a matter of speed."""
    ends = []
    for workers in WORKERS[:2]:
        trainer = run(tmp_path, **workers)
        trainer.train()
        ends.append(weights_of(trainer.model))
    assert largest_difference(*ends) == 0.0


def batches(seed: int, epochs: int) -> list[Tensor]:
    """The first batch of each epoch, of the same rows."""
    randomness, noisy = BatchRandomness(seed), Noisy()
    rows, make = randomness.rows(noisy), randomness.collator(masked)
    seen = []
    for epoch in range(epochs):
        randomness.begin_epoch(epoch)
        seen.append(make(rows.__getitems__([0, 1, 2]))["input_ids"])  # type: ignore[attr-defined]
    return seen


def test_epochs_and_seeds_draw_anew() -> None:
    """The same mask in every epoch would be no augmentation, and the same for each seed no repetition."""
    first, second = batches(seed=0, epochs=2)
    assert not torch.equal(first, second)
    assert torch.equal(first, batches(seed=0, epochs=1)[0])
    assert not torch.equal(first, batches(seed=1, epochs=1)[0])


def test_generators_stay_where_they_were() -> None:
    """Dropout must draw what it would have drawn."""
    for generator in (random, np.random):
        generator.seed(3)
    torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(())
    for generator in (random, np.random):
        generator.seed(3)
    torch.manual_seed(3)
    batches(seed=0, epochs=2)
    assert (random.random(), np.random.rand(), torch.rand(())) == expected
