"""A run of two processes, and the same resumed from each of its checkpoints.

    torchrun --nproc_per_node 2 resumed_processes.py FOLDER

Writes the weights and the log that each process ends with to FOLDER/<run>-<rank>. Not a test itself: test_resume.py
starts it.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from toy_models import toy_bert
from training_toys import logged, text_rows, trainer_of, weights_of

from hfdistill import DistillationTrainer, HiddenStateLoss, Objective, SoftTargetLoss
from hfdistill.losses.relation.contrastive_memory import ContrastiveMemoryLoss

STEPS = (1, 2, 3)


def trainer(folder: Path) -> DistillationTrainer:
    """Two epochs of two steps, with dropout, projector and memory; logged every third step."""
    torch.manual_seed(9)
    objective = Objective(kd=SoftTargetLoss(), hidden=HiddenStateLoss(), crd=ContrastiveMemoryLoss(4, dimension=8))
    student = toy_bert(width=8, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    options = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_grad_norm": 1.0, "logging_steps": 3}
    saving = {"save_strategy": "steps", "save_steps": 1}
    rows = text_rows(16)
    return trainer_of(folder, objective, student, rows, max_steps=4, **options, **saving)


def main(folder: Path) -> None:
    """The whole run and its resumed ones."""
    for step in (None, *STEPS):
        run = trainer(folder / f"from {step}")
        if run.accelerator.num_processes != 2 or run.args.world_size != 2:
            raise RuntimeError(f"{run.accelerator.num_processes} connected processes, expected 2")
        torch.manual_seed(run.args.process_index)  # dropout of each process its own
        run.train(resume_from_checkpoint=None if step is None else str(folder / "from None" / f"checkpoint-{step}"))
        name = folder / f"{step}-{run.args.process_index}"
        save_file(weights_of(run.model) | weights_of(run.objective), name.with_suffix(".safetensors"))
        name.with_suffix(".json").write_text(json.dumps(logged(run), sort_keys=True), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
