"""Steps of a LoRA student whose teacher is its own base, shared or copied, by as many processes as torchrun starts.

    torchrun --nproc_per_node 2 shared_base_runs.py FOLDER EXPECTED_PROCESSES

Writes the weights that each process ends with to FOLDER/<case>-<shared or copied>-<processes>-<rank>.safetensors. Not
a test itself: test_shared_base.py starts it.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from toy_models import toy_bert, toy_llama
from training_toys import text_rows, trainer_of, weights_of

from hfdistill import AttentionMapLoss, DistillationTrainer, HiddenStateLoss, Objective, SoftTargetLoss, TaskLoss

GLOBAL_BATCH = 8
DROPOUT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
LORA: dict[str, Any] = {"task_type": "SEQ_CLS", "r": 2, "init_lora_weights": False}
BERT = {"target_modules": ["query", "value", "dense"]}
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "plain": (toy_bert, BERT, {}),
    "recomputed": (toy_bert, BERT, {"activation_checkpointing": True}),
    "accumulated": (toy_bert, BERT, {"gradient_accumulation_steps": 2}),
    "llama, recomputed": (toy_llama, {"target_modules": ["q_proj", "v_proj"]}, {"activation_checkpointing": True}),
}


def trainer_in(folder: Path, case: str, shared: bool, processes: int, **changes: Any) -> DistillationTrainer:
    """A trainer of three steps whose student has an adapter that is no longer at its beginning.

    Args:
        folder: where the run writes.
        case: one of CASES.
        shared: the base itself teaches; else a copy of it that was made before.
        processes: over which the global batch is shared out.
        changes: of the run's arguments; `dropout` is the student's.
    """
    make, adapter, run = CASES[case]
    run = {"max_steps": 3, "learning_rate": 0.03} | run | changes
    dropout = DROPOUT if run.pop("dropout", True) and make is toy_bert else {}
    student: Any = make(layers=2, **dropout)
    maps = AttentionMapLoss([(1, 1)], target="probabilities", divergence="kl")
    torch.manual_seed(7 + int(os.environ.get("RANK", "0")))  # the adapter of the first process must reach the others
    trainer = trainer_of(
        folder,
        Objective(task=TaskLoss(), kd=SoftTargetLoss(), hidden=HiddenStateLoss([(0, 0), (2, 2)]), attention=maps),
        student,
        text_rows(2 * GLOBAL_BATCH),
        teacher=student if shared else make(layers=2, **dropout),
        peft_config=LoraConfig(lora_dropout=0.2 if dropout else 0.0, **LORA, **adapter),
        train_sampling_strategy="sequential",
        per_device_train_batch_size=GLOBAL_BATCH // processes // run.get("gradient_accumulation_steps", 1),
        **run,
    )
    if trainer.accelerator.num_processes != processes or trainer.args.world_size != processes:
        raise RuntimeError(f"{trainer.accelerator.num_processes} connected processes, expected {processes}")
    return trainer


def learnt(trainer: DistillationTrainer) -> dict[str, torch.Tensor]:
    """All that a run ends with: student, base and projectors."""
    return weights_of(trainer.model) | weights_of(trainer.objective)


def run(folder: Path, processes: int) -> None:
    """Train each case in float64 without dropout, with either teacher, and write what this process ends with."""
    for case in CASES:
        for kind in ("shared", "copied"):
            trainer = trainer_in(folder, case, kind == "shared", processes, dropout=False)
            for model in (trainer.model, *([] if kind == "shared" else [trainer.teacher.model])):
                model.double()  # where sums in another order differ by nothing that grows
            trainer.train()
            save_file(learnt(trainer), folder / f"{case}-{kind}-{processes}-{trainer.args.process_index}.safetensors")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
