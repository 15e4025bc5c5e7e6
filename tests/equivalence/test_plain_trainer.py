"""Without a teacher the trainer must be the Trainer.

At accumulation 1 only: the stock Trainer scales the loss of models that take, and then ignore, `num_items_in_batch`
(BERT is one) by the number of accumulated micro-batches, which is not to be reproduced.
"""

from pathlib import Path
from typing import Any

import pytest
from toy_models import toy_bert
from training_toys import arguments, collate, largest_difference, logged, text_rows, trainer_of, weights_of
from transformers import Trainer

from hfdistill import Objective, TaskLoss

CASES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw, clipping, warmup, decay": {
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
        "max_grad_norm": 0.5,
        "warmup_steps": 2,
        "weight_decay": 0.1,
        "lr_scheduler_type": "linear",
    },
    "label smoothing": {"label_smoothing_factor": 0.2},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"])
def test_the_task_alone_is_the_stock_trainer(tmp_path: Path, head: str, case: str) -> None:
    """The student without distillation is what all is compared with: it must be the one everybody else has."""
    rows = text_rows(12, labels="rows" if head == "ForSequenceClassification" else "tokens", ignored=(1, 2, 6))
    args = arguments(tmp_path, max_steps=4, **CASES[case])
    ours = trainer_of(
        tmp_path, Objective(task=TaskLoss()), toy_bert(head=head), rows, teacher=None, args=args, eval_dataset=rows
    )
    ours.train()
    stock = Trainer(toy_bert(head=head), args, collate, rows, eval_dataset=rows)
    stock.train()
    assert largest_difference(weights_of(stock.model), toy_bert(head=head).state_dict()) > 1e-3
    assert largest_difference(weights_of(ours.model), weights_of(stock.model)) < 1e-6
    stock_losses = [line["loss"] for line in stock.state.log_history if "loss" in line]
    assert [line["loss"] for line in logged(ours)] == pytest.approx(stock_losses, rel=1e-5)
    assert ours.evaluate()["eval_loss"] == pytest.approx(stock.evaluate()["eval_loss"], rel=1e-5)
