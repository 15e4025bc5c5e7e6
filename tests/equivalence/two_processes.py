"""SGD steps of each objective on one global batch, by as many processes as torchrun starts.

    torchrun --nproc_per_node 2 two_processes.py FOLDER EXPECTED_PROCESSES

Writes the weights that each process ends with to FOLDER/<name>-<processes>-<rank>.safetensors, and the log of the
first process beside them. Not a test itself: test_two_processes.py starts it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from toy_models import toy_bert
from training_toys import logged, text_rows, trainer_of, weights_of

from hfdistill import AttentionMapLoss, HiddenStateLoss, Objective, SoftTargetLoss, TaskLoss, preset

GLOBAL_BATCH = 8
ROWS, TOKENS = "ForSequenceClassification", "ForTokenClassification"
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "kd": (ROWS, lambda: Objective(task=TaskLoss(weight=0.1), kd=SoftTargetLoss(weight=0.9)), {}),
    "ragged": (TOKENS, lambda: Objective(task=TaskLoss(), kd=SoftTargetLoss(), hidden=HiddenStateLoss()), {}),
    "accumulated": (
        ROWS,
        lambda: Objective(hidden=HiddenStateLoss(), attention=AttentionMapLoss()),
        {"gradient_accumulation_steps": 2},
    ),
    "scheduled": (ROWS, lambda: preset("tinybert", switch=0.5), {"max_steps": 4}),
    "scheduled, recomputed": (
        ROWS,
        lambda: preset("tinybert", switch=0.5),
        {"max_steps": 4, "activation_checkpointing": True},
    ),
    "stages": (ROWS, lambda: preset("sskd", finish=0.5), {"max_steps": 4, "weight_decay": 0.1}),
    "perturbed": (ROWS, lambda: Objective(kd=SoftTargetLoss()), {"embedding_perturbation": 0.1}),
}


def run(folder: Path, processes: int) -> None:
    """Train each case and write what this process ends with."""
    for name, (head, objective, changes) in CASES.items():
        kind = "rows" if head == ROWS else "tokens"
        rows = text_rows(GLOBAL_BATCH, labels=kind, ignored=(0, 1, 3, 6))
        torch.manual_seed(5)
        trainer = trainer_of(
            folder,
            objective(),
            toy_bert(width=8, head=head),
            rows,
            teacher=toy_bert(layers=4, seed=1, head=head),
            eval_dataset=rows,
            eval_objective=True,
            train_sampling_strategy="sequential",
            per_device_train_batch_size=GLOBAL_BATCH // processes // changes.get("gradient_accumulation_steps", 1),
            **({"max_steps": 1} | changes),
        )
        if trainer.accelerator.num_processes != processes or trainer.args.world_size != processes:
            raise RuntimeError(f"{trainer.accelerator.num_processes} connected processes, expected {processes}")
        trainer.train()
        metrics = {key: value for key, value in trainer.evaluate().items() if key.startswith("eval_loss")}
        rank = trainer.args.process_index
        weights = weights_of(trainer.model) | weights_of(trainer.objective)
        save_file(weights, folder / f"{name}-{processes}-{rank}.safetensors")
        if rank == 0:
            terms = {key: value for key, value in logged(trainer)[-1].items() if key.startswith("loss")}
            (folder / f"{name}-{processes}.json").write_text(json.dumps(terms | metrics), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
