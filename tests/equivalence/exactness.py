"""Gradients of one step on one global batch, by as many processes as torchrun starts, cut in every way.

    torchrun --nproc_per_node 2 exactness.py FOLDER EXPECTED_PROCESSES

Writes what the optimizer is given, of the student and of the objective's parts, and the weights after the step, to
FOLDER/<objective>-<processes>x<accumulation>-<kept or recomputed>-<rank>.safetensors, and the rows that this process
saw in each epoch of a run to FOLDER/rows-<processes>-<rank>.json. Not a test itself: test_exactness.py starts it.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from toy_models import toy_bert
from training_toys import collate, text_rows, trainer_of, weights_of
from transformers import TrainerCallback

from hfdistill import (
    AttentionMapLoss,
    HiddenStateLoss,
    InBatchContrastLoss,
    Objective,
    SimilarityPreservingLoss,
    SoftTargetLoss,
    TaskLoss,
)

GLOBAL_BATCH = 8
CUTS = {1: (1, 2, 4), 2: (1, 2, 4)}
"""Processes -> into how many micro-batches each cuts its share of the global batch."""
IGNORED = (0, 1, 6)  # the halves of the batch have 2 and 3 labels, its quarters 0, 2, 2 and 1
ROWS, TOKENS = "ForSequenceClassification", "ForTokenClassification"
OBJECTIVES: dict[str, tuple[str, Any]] = {
    "sequence": (ROWS, lambda: Objective(task=TaskLoss(weight=0.3), kd=SoftTargetLoss(temperature=2.0, weight=0.7))),
    "token": (
        TOKENS,
        lambda: Objective(
            task=TaskLoss(), kd=SoftTargetLoss(), hidden=HiddenStateLoss(), attention=AttentionMapLoss()
        ),
    ),
    "relation": (
        ROWS,
        lambda: Objective(contrast=InBatchContrastLoss(gather=True), similarity=SimilarityPreservingLoss(gather=True)),
    ),
}


ROWS_OF_EPOCH = 16
STRATEGIES = ("random", "group_by_length")


class Gradients(TrainerCallback):
    """Keeps what the optimizer is given in the first step."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        named = nn.Module.named_parameters(given["model"])
        self.found = {f"gradient.{name}": p.grad.clone() for name, p in named if p.grad is not None}


def step(folder: Path, name: str, processes: int, cuts: int, recomputed: bool) -> dict[str, Tensor]:
    """One step in float64: gradients of everything that learns, and the weights that it leaves."""
    head, objective = OBJECTIVES[name]
    gradients = Gradients()
    torch.manual_seed(5)
    trainer = trainer_of(
        folder,
        objective(),
        toy_bert(width=8, head=head).double(),
        text_rows(GLOBAL_BATCH, labels="rows" if head == ROWS else "tokens", ignored=IGNORED),
        teacher=toy_bert(layers=4, seed=1, head=head).double(),
        callbacks=[gradients],
        max_steps=1,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=GLOBAL_BATCH // processes // cuts,
        gradient_accumulation_steps=cuts,
        activation_checkpointing=recomputed,
    )
    if trainer.accelerator.num_processes != processes or trainer.args.world_size != processes:
        raise RuntimeError(f"{trainer.accelerator.num_processes} connected processes, expected {processes}")
    trainer.objective.double()
    trainer.train()
    if trainer.model.is_activation_checkpointing != recomputed:
        raise RuntimeError(f"activation checkpointing is {not recomputed}, expected {recomputed}")
    return gradients.found | weights_of(trainer.model) | weights_of(trainer.objective)


def rows_seen(folder: Path, processes: int, strategy: str) -> list[list[int]]:
    """The rows that this process saw, epoch by epoch; dropout draws other numbers here than in the other process."""
    rows, seen = text_rows(ROWS_OF_EPOCH), []
    numbers = {tuple(ids): number for number, ids in enumerate(rows["input_ids"])}

    def collate_seen(batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        seen.extend(numbers[tuple(row["input_ids"])] for row in batch)
        return collate(batch)

    trainer = trainer_of(
        folder,
        Objective(kd=SoftTargetLoss()),
        toy_bert(width=8, hidden_dropout_prob=0.3),
        rows,
        data_collator=collate_seen,
        max_steps=-1,
        num_train_epochs=3,
        per_device_train_batch_size=2,
        train_sampling_strategy=strategy,
    )
    trainer.train()
    share = ROWS_OF_EPOCH // processes
    return [seen[at : at + share] for at in range(0, len(seen), share)]


def run(folder: Path, processes: int) -> None:
    """Make the step in every way that this number of processes can, and write what came of each."""
    rank = int(os.environ.get("RANK", "0"))
    for name in OBJECTIVES:
        for cuts in CUTS[processes]:
            for recomputed in (False, True):
                found = step(folder, name, processes, cuts, recomputed)
                way = f"{name}-{processes}x{cuts}-{'recomputed' if recomputed else 'kept'}-{rank}"
                save_file({key: value.contiguous() for key, value in found.items()}, folder / f"{way}.safetensors")
    seen = {strategy: rows_seen(folder, processes, strategy) for strategy in STRATEGIES}
    (folder / f"rows-{processes}-{rank}.json").write_text(json.dumps(seen), encoding="utf-8")
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
