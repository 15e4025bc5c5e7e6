"""An experiment by as many processes as torchrun starts, run twice.

    torchrun --nproc_per_node 2 experiments.py FOLDER

Each process writes what it trained and measured to FOLDER/<rank>.json. Not a test itself: test_experiments.py starts
it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from toy_models import toy_bert
from training_toys import arguments, collate, text_rows

from hfdistill import DistillationTrainer, Experiment

ROWS = 11  # an odd number: the sampler fills the last batch of the two processes with rows seen before


def accuracy(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Share of equal labels."""
    return {"accuracy": float((logits.argmax(axis=-1) == labels).mean())}


def run(folder: Path) -> None:
    """Run control and kd, and then again what is finished."""
    args = arguments(folder / "out")
    rank = args.process_index
    experiment = Experiment(
        teacher=toy_bert(layers=4, seed=1),
        make_student=toy_bert,
        arguments=args,
        train_dataset=text_rows(16),
        evaluation={"validation": text_rows(ROWS, seed=1)},
        data_collator=collate,
        processing_class=None,
        metrics=accuracy,
        metric="accuracy",
        output_dir=folder / "out",
        batching={"rank": rank},  # the processes would not agree on what is finished, had each to find out
    )
    trained: list[str] = []
    train = DistillationTrainer.train

    def noted(trainer: DistillationTrainer, *given: Any, **options: Any) -> Any:
        trained.append(Path(str(trainer.args.output_dir)).parent.name)
        return train(trainer, *given, **options)

    DistillationTrainer.train = noted  # type: ignore[method-assign]
    runs = [experiment.run({"control": None, "kd": "kd"}, [0]) for _ in range(2)]
    told = {"trained": trained, "kl": [[arm.kl for arm in comparison.arms] for comparison in runs]}
    (folder / f"{rank}.json").write_text(json.dumps({**told, "processes": args.world_size}))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
