"""Programs that compare runs of a toy student, and start themselves again in two processes.

    python equivalence_runs.py NAME

Not a test itself: test_equivalence_command.py takes its trainers from here, and starts it in two processes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from toy_models import toy_bert
from training_toys import arguments, collate, text_rows

from hfdistill import (
    DistillationTrainer,
    HiddenStateLoss,
    Objective,
    SimilarityPreservingLoss,
    SoftTargetLoss,
    TaskLoss,
    equivalences,
)

DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
ROWS = 16


def plain() -> Objective:
    """Labels, answers and, through a projector, layers."""
    return Objective(task=TaskLoss(), kd=SoftTargetLoss(), hidden=HiddenStateLoss())


def relational() -> Objective:
    """The same, and a term that relates the rows of each process."""
    return Objective(task=TaskLoss(), hidden=HiddenStateLoss(), relation=SimilarityPreservingLoss(weight=100.0))


class MeanOfMeans(DistillationTrainer):
    """Forgets to count the labels of an update, so that a token of a short batch counts more."""

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        samples = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._counts._totals = None
        return samples


def maker(kind: type[DistillationTrainer] = DistillationTrainer, objective: Any = plain, **own: Any) -> Any:
    """A maker of trainers of a toy student with dropout, written as a user would.

    Args:
        kind: of the trainer.
        objective: makes it.
        own: other arguments of the trainer; in a mapping `args` of the run; `head` of the models; `folder` of the run.
    """
    run = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 1.0, **own.pop("args", {})}
    head = own.pop("head", "ForSequenceClassification")
    folder = own.pop("folder", Path(tempfile.gettempdir()))
    rows = text_rows(ROWS, labels="rows" if head == "ForSequenceClassification" else "tokens", ignored=(0, 1, 6))
    given = {"train_dataset": rows, "data_collator": collate, **own}

    def make_trainer(**changes: Any) -> DistillationTrainer:
        torch.manual_seed(7)
        args = arguments(folder, **run)
        default = {"model": toy_bert(width=8, head=head, **DROPOUT), "teacher": toy_bert(layers=4, seed=1, head=head)}
        return kind(objective=objective(), args=replace(args, **changes), **{**default, **given})

    return make_trainer


MAKERS = {
    "sound": maker(),
    "relational": maker(objective=relational),
    "mean of means": maker(MeanOfMeans, head="ForTokenClassification"),
}

if __name__ == "__main__":
    equivalences(MAKERS[sys.argv[1]], command=sys.argv)
