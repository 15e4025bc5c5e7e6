"""Batches of rows of like length, padded no further than they need: the same results, up to order, for less work."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_models import PAD, toy_bert
from training_toys import IGNORED, collate, text_rows, trainer_of

from benchmarks.lengths import (
    computed_tokens,
    grouped_batches,
    padding,
    random_batches,
    sst2_like_lengths,
)
from hfdistill import DistillationTrainer, FrozenTeacher
from hfdistill.observation import observed_terms
from hfdistill.recipe_arguments import DEFAULTS, TEXT
from hfdistill.representations import Batch

MAX_LENGTH = 24
PRESETS = ("kd", "pkd", "tinybert", "minilm", "lrc_bert")
SUMS = ("kd", "pkd", "tinybert", "minilm")
"""Of these each row has terms of its own; LRC-BERT sets it against the other rows of its batch."""
ROWS = text_rows(64, tokens=(3, 20), seed=3)


def longer(name: str, value: Tensor) -> Tensor:
    """A column of a batch as if all rows had been padded to MAX_LENGTH."""
    if value.dim() == 1:
        return value
    filler = {"input_ids": PAD, "attention_mask": 0}.get(name, IGNORED)
    return torch.nn.functional.pad(value, (0, MAX_LENGTH - value.shape[1]), value=filler)


def terms(trainer: DistillationTrainer, rows: list[int], fixed: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Each term's value on these rows and what it counts, padded to the longest of them or all to MAX_LENGTH."""
    inputs: dict[str, Any] = collate([ROWS[row] for row in rows])
    if fixed:
        inputs = {name: longer(name, value) for name, value in inputs.items()}
    assert isinstance(trainer.teacher, FrozenTeacher)
    trainer.student.eval()
    taught = trainer.teacher.represent(inputs, trainer.objective.needs()[1])
    with torch.no_grad():
        observed = observed_terms(trainer.student, trainer.objective, inputs, taught, Batch.of(inputs), None)
    values, counts = ({name: float(value) for name, value in part.items()} for part in observed)
    return values, counts


def exact_trainer(folder: Path, preset: str) -> DistillationTrainer:
    """In float64, so that nothing but padding can make a difference."""
    teacher = toy_bert(layers=4, seed=1).double()
    return trainer_of(folder, preset, toy_bert().double(), ROWS, teacher=teacher)


def lengths() -> list[int]:
    return [len(ids) for ids in ROWS["input_ids"]]


def test_a_grouped_epoch_sees_each_row_once(tmp_path: Path) -> None:
    """Sorting rows into batches must not lose one or show one twice; and it is the recipes' default."""
    seen: list[tuple[int, ...]] = []
    widths: list[int] = []
    student = toy_bert()

    def look(_: Any, __: Any, kwargs: dict[str, Tensor]) -> None:
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"].bool()
        widths.append(ids.shape[1])
        seen.extend(tuple(row[real].tolist()) for row, real in zip(ids, mask, strict=True))

    student.register_forward_pre_hook(look, with_kwargs=True)
    grouping = {"train_sampling_strategy": DEFAULTS[TEXT]["train_sampling_strategy"]}
    trainer_of(tmp_path, "kd", student, ROWS, max_steps=-1, num_train_epochs=1, **grouping).train()
    assert sorted(seen) == sorted(tuple(ids) for ids in ROWS["input_ids"])
    assert sum(width * 4 for width in widths) < 1.3 * sum(lengths()), "rows of like length share a batch"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_batch_padded_as_it_needs_gives_the_terms_of_a_longer_one(tmp_path: Path, preset: str) -> None:
    """What padding is left out must not have counted: else the default would train another student."""
    trainer = exact_trainer(tmp_path, preset)
    for rows in grouped_batches(lengths(), 4):
        dynamic, fixed = terms(trainer, rows, fixed=False), terms(trainer, rows, fixed=True)
        assert dynamic[0].keys() == fixed[0].keys()
        assert dynamic[0]
        assert dynamic[1] == fixed[1]
        for name, value in dynamic[0].items():
            assert value == pytest.approx(fixed[0][name], rel=1e-9), name


@pytest.mark.parametrize("preset", SUMS)
def test_an_epoch_of_grouped_batches_is_one_of_random_ones(tmp_path: Path, preset: str) -> None:
    """Same results up to order: over an epoch each term's mean is that of shuffled rows padded to one length."""
    trainer = exact_trainer(tmp_path, preset)
    means = []
    for batches, fixed in ((grouped_batches(lengths(), 4), False), (random_batches(lengths(), 4), True)):
        found = [terms(trainer, rows, fixed) for rows in batches]
        totals = {name: sum(counts[name] for _, counts in found) for name in found[0][1]}
        means.append(
            {name: sum(values[name] * counts[name] for values, counts in found) / totals[name] for name in totals}
        )
    assert means[0]
    assert means[0] == pytest.approx(means[1], rel=1e-9)


def test_lengths_are_those_of_sst2() -> None:
    """What is said of an epoch's cost rests on them; a test against the data itself is below."""
    drawn = torch.tensor(sst2_like_lengths(20_000), dtype=torch.float)
    assert drawn.mean() == pytest.approx(13.3, abs=0.3)
    assert drawn.std() == pytest.approx(9.5, abs=0.3)
    assert (int(drawn.min()), int(drawn.max())) == (3, 66)
    assert sst2_like_lengths(50, seed=1) == sst2_like_lengths(50, seed=1) != sst2_like_lengths(50, seed=2)


@pytest.mark.data
def test_lengths_are_like_those_of_the_data(shared: Path) -> None:
    """A made-up distribution could promise any speed."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    rows = load_dataset("parquet", data_files=str(shared / "data/glue/sst2/train.parquet"), split="train[:6000]")
    tokenizer = AutoTokenizer.from_pretrained(shared / "teachers/minilm-l6-sst2")
    real = torch.tensor([len(ids) for ids in tokenizer(list(rows["sentence"]))["input_ids"]], dtype=torch.float)
    drawn = torch.tensor(sst2_like_lengths(6000), dtype=torch.float)
    for share in (0.1, 0.25, 0.5, 0.75, 0.9, 0.95):
        assert abs(real.quantile(share) - drawn.quantile(share)) <= 2
    assert drawn.mean() == pytest.approx(float(real.mean()), rel=0.05)


def test_tokens_are_counted_as_batches_are_padded() -> None:
    """By hand: four rows in two batches."""
    rows = [2, 9, 3, 8]
    assert computed_tokens(rows, [[0, 1], [2, 3]]) == 2 * 9 + 2 * 8
    assert computed_tokens(rows, [[0, 2], [1, 3]]) == 2 * 3 + 2 * 9
    assert computed_tokens(rows, [[0, 1], [2, 3]], max_length=10) == 40


def test_most_of_a_fixed_batch_is_padding() -> None:
    """The factor that grouping is worth, and that all rows are in it."""
    counted = padding(rows=6400, batch=32, max_length=128)
    assert counted["fixed"]["tokens"] == 6400 * 128
    assert counted["fixed"]["padding"] == pytest.approx(0.895, abs=0.01)
    assert counted["dynamic"]["padding"] > 0.6
    assert counted["grouped"]["padding"] < 0.08
    for batches in (grouped_batches, random_batches):
        assert sorted(chain.from_iterable(batches(sst2_like_lengths(100), 32))) == list(range(100))
