"""Toy training runs for the tests of the trainer: rows of ragged text, a collator, arguments, and a trainer of them.

Everything is seeded and runs on the CPU in well under a second. What a test is about, it passes itself.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from toy_models import PAD, toy_bert

from hfdistill import DistillationTrainer, DistillationTrainingArguments, Objective

# Every training run collects garbage, and would look through all that was imported: half of a toy run's time. Under
# pytest conftest.py does this again for each module, with what came since.
gc.freeze()

IGNORED = -100
CLASSES = 3


def text_rows(
    count: int = 8,
    tokens: tuple[int, int] = (3, 9),
    labels: str | None = "rows",
    ignored: Sequence[int] = (),
    token_types: bool = False,
    seed: int = 0,
) -> Dataset:
    """Rows of random token ids of different length.

    Args:
        count: number of rows.
        tokens: shortest and longest row.
        labels: one class per "rows" or "tokens", or None for a set without labels.
        ignored: rows whose label is -100; with token labels every second of their tokens.
        token_types: with `token_type_ids`, 0 in the first half of a row and 1 in the second.
        seed: of the ids and labels.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        length = int(torch.randint(tokens[0], tokens[1] + 1, (1,), generator=generator))
        row: dict[str, Any] = {
            "input_ids": torch.randint(5, 64, (length,), generator=generator).tolist(),
            "attention_mask": [1] * length,
        }
        classes = torch.randint(0, CLASSES, (length,), generator=generator).tolist()
        if labels == "rows":
            row["labels"] = IGNORED if index in ignored else classes[0]
        if labels == "tokens":
            row["labels"] = [IGNORED if index in ignored and at % 2 else label for at, label in enumerate(classes)]
        if token_types:
            row["token_type_ids"] = [int(2 * at >= length) for at in range(length)]
        rows.append(row)
    return Dataset.from_list(rows)


def image_rows(count: int = 8, size: int = 8, seed: int = 0) -> Dataset:
    """Random images of `size` by `size` pixels with one class each."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, size, size, generator=generator)
    rows = [{"pixel_values": image.tolist(), "labels": at % CLASSES} for at, image in enumerate(images)]
    return Dataset.from_list(rows)


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Pad to the longest row of the batch, so that different batches are padded differently."""
    fillers = {"input_ids": PAD, "attention_mask": 0, "token_type_ids": 0, "labels": IGNORED}
    batch = {}
    for name in rows[0]:
        values = [torch.tensor(row[name]) for row in rows]
        if name in fillers and values[0].dim() == 1:
            batch[name] = nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=fillers[name])  # (B, N)
        else:
            batch[name] = torch.stack(values)
    return batch


def arguments(folder: Path, **changes: Any) -> DistillationTrainingArguments:
    """Arguments of a run of two steps of plain SGD on the CPU that logs each and saves none."""
    quiet = {"use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False, "report_to": "none"}
    short = {"max_steps": 2, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}
    plain = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    chosen = quiet | short | plain | {"logging_steps": 1, "save_strategy": "no"} | changes
    return DistillationTrainingArguments(output_dir=str(folder), **chosen)


def trainer_of(
    folder: Path,
    objective: Objective | str | Mapping[str, Any] = "kd",
    student: nn.Module | None = None,
    rows: Dataset | None = None,
    kind: type[DistillationTrainer] = DistillationTrainer,
    **changes: Any,
) -> DistillationTrainer:
    """A trainer of a two-layer BERT that learns from one of four layers on eight rows.

    Args:
        folder: where the run writes.
        objective: see DistillationTrainer.
        student: instead of the two-layer BERT.
        rows: instead of the eight rows.
        kind: a subclass of the trainer.
        changes: arguments of DistillationTrainer (`teacher`, `eval_dataset`, ...) or else of the run.
    """
    own = ("teacher", "teacher_processing_class", "eval_dataset", "compute_metrics", "callbacks", "optimizers")
    own = (
        *own,
        "processing_class",
        "compute_loss_func",
        "model_init",
        "peft_config",
        "preprocess_logits_for_metrics",
        "args",
        "data_collator",
    )
    given = {name: changes.pop(name) for name in own if name in changes}
    if "teacher" not in given:
        given["teacher"] = toy_bert(layers=4, seed=1)
    if "args" not in given:  # to make others would undo what these told Accelerate
        given["args"] = arguments(folder, **changes)
    if "model_init" not in given:
        given["model"] = toy_bert() if student is None else student
    given.setdefault("data_collator", collate)
    rows = text_rows() if rows is None else rows
    return kind(objective=objective, train_dataset=rows, **given)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's weights."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Largest absolute difference between two sets of weights of the same names."""
    if one.keys() != other.keys():
        raise ValueError(f"the names differ: {sorted(one.keys() ^ other.keys())}. Compare models of one class.")
    return max((float((one[name].double() - other[name].double()).abs().max()) for name in one), default=0.0)


def logged(trainer: DistillationTrainer) -> list[dict[str, float]]:
    """The training log, one entry per log line."""
    return [line for line in trainer.state.log_history if "loss" in line]
