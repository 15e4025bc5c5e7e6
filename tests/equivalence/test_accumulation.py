"""How a batch is cut into micro-batches must not change what is learnt.

Contrastive losses are left out: their negatives are the other rows of a micro-batch, so cutting the batch changes them
by definition.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from toy_models import toy_bert
from training_toys import largest_difference, logged, text_rows, trainer_of, weights_of

from hfdistill import AttentionMapLoss, HiddenStateLoss, Objective, PatienceLoss, SoftTargetLoss, TaskLoss, preset

ROWS = 14  # 8 and 6: the second update is short, and its micro-batches of 4 and 2 rows are unequal


def run(
    folder: Path, objective: Objective, rows: Dataset, head: str, rows_at_once: int
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Train two updates of (at most) eight rows in float64; the student's and projectors' weights, and the log."""
    models: dict[str, Any] = {"head": head, "width": 8}
    trainer = trainer_of(
        folder,
        objective,
        student=toy_bert(**models).double(),
        teacher=toy_bert(layers=4, seed=1, head=head).double(),
        rows=rows,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=8 // rows_at_once,
    )
    torch.manual_seed(3)
    for parameter in trainer.objective.double().parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    trainer.train()
    return weights_of(trainer.model) | weights_of(trainer.objective), logged(trainer)


def by_rows() -> Dataset:
    """Rows of which one micro-batch of two has no label at all."""
    return text_rows(ROWS, ignored=(2, 3, 9))


def by_tokens() -> Dataset:
    """Rows with token labels, some of them ignored."""
    return text_rows(ROWS, labels="tokens", ignored=(0, 1, 5, 12))


ROW_HEAD, TOKEN_HEAD = "ForSequenceClassification", "ForTokenClassification"
CASES: dict[str, tuple[str, Callable[[], Dataset], Callable[[], Objective]]] = {
    "kd": (ROW_HEAD, by_rows, lambda: preset("kd")),
    "hidden": (ROW_HEAD, by_rows, lambda: Objective(hidden=HiddenStateLoss())),
    "scores": (ROW_HEAD, by_rows, lambda: Objective(attention=AttentionMapLoss())),
    "probabilities": (
        ROW_HEAD,
        by_rows,
        lambda: Objective(attention=AttentionMapLoss(target="probabilities", divergence="kl")),
    ),
    "relation": (ROW_HEAD, by_rows, lambda: preset("minilm", relation_heads=2, switch=0.9)),
    "patience": (ROW_HEAD, by_rows, lambda: Objective(task=TaskLoss(), patience=PatienceLoss([(1, 2)]))),
    "tokens": (TOKEN_HEAD, by_tokens, lambda: Objective(task=TaskLoss(weight=0.5), kd=SoftTargetLoss(2.0))),
    "tokens and layers": (
        TOKEN_HEAD,
        by_tokens,
        lambda: Objective(task=TaskLoss(), hidden=HiddenStateLoss(metric="cosine"), attention=AttentionMapLoss()),
    ),
    "tokens without labels": (
        TOKEN_HEAD,
        lambda: text_rows(ROWS, labels=None),
        lambda: Objective(kd=SoftTargetLoss()),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_change_neither_weights_nor_log(tmp_path: Path, case: str) -> None:
    """Whoever cuts the batch to fit a smaller machine must get the same student and the same curves."""
    head, rows, objective = CASES[case]
    whole, whole_log = run(tmp_path, objective(), rows(), head, 8)
    untrained = toy_bert(head=head, width=8).double().state_dict()
    learnt = {name: whole[name] for name in untrained}
    assert largest_difference(learnt, untrained) > 1e-3, "nothing was learnt, so nothing is compared"
    for rows_at_once in (4, 2):
        cut, cut_log = run(tmp_path, objective(), rows(), head, rows_at_once)
        assert largest_difference(whole, cut) < 1e-6
        for expected, line in zip(whole_log, cut_log, strict=True):
            for name in (name for name in expected if name.startswith("loss")):
                assert line[name] == pytest.approx(expected[name], rel=1e-5), name
