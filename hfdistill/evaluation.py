"""A trained model on whole splits: its logits row by row, and batches of its inputs as evaluation makes them.

Labels are kept from the model, so that one without a loss of its own (DeiT with two heads) is evaluated as any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments

from hfdistill.anatomy import Anatomy

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class InputsOf:
    """A collator that keeps what a model's forward takes, without labels.

    Args:
        collator: makes batches.
        names: of the forward's arguments.
    """

    collator: Any
    names: tuple[str, ...]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch of rows."""
        batch = self.collator(rows)
        return {name: value for name, value in batch.items() if name in self.names and name != "labels"}


def predicted_logits(model: PreTrainedModel, rows: Dataset, collator: Any, args: TrainingArguments) -> Array:
    """The logits of every row, (rows, K) in float32, in the rows' order, whatever the number of processes.

    Args:
        model: its forward gives the logits first, or them alone.
        rows: to predict.
        collator: makes batches.
        args: of the run: batch size and device; precision is full whatever they say.
    """
    trainer = _trainer(model, collator, args)
    return np.asarray(trainer.predict(rows).predictions, dtype=np.float32)


def input_batches(
    model: PreTrainedModel, rows: Dataset, collator: Any, args: TrainingArguments, batches: int, size: int
) -> list[dict[str, Tensor]]:
    """Up to `batches` batches of `size` of a model's inputs, on the CPU, of rows from all over the split.

    Args:
        model: whose forward says what an input is.
        rows: a split.
        collator: makes batches.
        args: of the run.
        batches: how many at most.
        size: rows of each.
    """
    count = min(len(rows), batches * size)
    spread = rows.select(np.linspace(0, len(rows) - 1, count).round().astype(int))
    trainer = _trainer(model, collator, replace(args, per_device_eval_batch_size=size))
    return [{name: value.cpu() for name, value in batch.items()} for batch in trainer.get_test_dataloader(spread)]


def write_tensors(path: Path, tensors: Mapping[str, Tensor | Array]) -> None:
    """Write named tensors or arrays as safetensors, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.as_tensor(value).contiguous() for name, value in tensors.items()}, path)


def _trainer(model: PreTrainedModel, collator: Any, args: TrainingArguments) -> Trainer:
    """Full precision, and rows in their own order: grouping by length would permute the predictions."""
    return Trainer(
        model=model,
        args=replace(args, bf16=False, fp16=False, train_sampling_strategy="sequential"),
        data_collator=InputsOf(collator, Anatomy.of(model).input_names),
        preprocess_logits_for_metrics=_first,
    )


def _first(outputs: Tensor | tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
    """The logits, which every classifier of transformers gives first; caches and heads of their own follow."""
    return outputs[0] if isinstance(outputs, tuple) else outputs
