"""Steps of a LoRA student whose teacher is its own base, shared or copied, by as many processes as torchrun starts.

    torchrun --nproc_per_node 2 shared_base_runs.py FOLDER EXPECTED_PROCESSES [zero3]

Writes the weights that each process ends with to FOLDER/<case>-<shared or copied>-<processes>-<rank>.safetensors; with
zero3 those of the case "plain" under DeepSpeed ZeRO-3. Not a test itself: test_shared_base.py starts it.
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
from hfdistill.distributed.sharding import whole_state

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
        changes: of the run's arguments; `dropout` is the student's, `rank` changes the adapter that it begins with.
    """
    make, adapter, run = CASES[case]
    run = {"max_steps": 3, "learning_rate": 0.03} | run | changes
    dropout = DROPOUT if run.pop("dropout", True) and make is toy_bert else {}
    student: Any = make(layers=2, **dropout)
    maps = AttentionMapLoss([(1, 1)], target="probabilities", divergence="kl")
    torch.manual_seed(7 + run.pop("rank", 0))  # the adapter of the first process must reach the others
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
            rank = int(os.environ.get("RANK", "0"))
            trainer = trainer_in(folder, case, kind == "shared", processes, dropout=False, rank=rank)
            for model in (trainer.model, *([] if kind == "shared" else [trainer.teacher.model])):
                model.double()  # where sums in another order differ by nothing that grows
            trainer.train()
            save_file(learnt(trainer), folder / f"{case}-{kind}-{processes}-{rank}.safetensors")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_in_shards(folder: Path, processes: int) -> None:
    """Train the plain case under ZeRO-3, with either teacher, and write what it ends with, gathered."""
    import deepspeed

    deepspeed.init_distributed("gloo")
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    stage = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
    zero = {**dict.fromkeys(sizes, "auto"), "zero_optimization": stage}
    for kind in ("shared", "copied"):
        trainer = trainer_in(folder, "plain", kind == "shared", processes, dropout=False, deepspeed=zero)
        trainer.train()
        whole = {name: value.clone().contiguous() for name, value in whole_state(trainer.student).items()}
        if trainer.args.process_index == 0:
            save_file(whole, folder / f"zero3-{kind}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[3:]:
        os.environ["DS_ACCELERATOR"] = "cpu"
        run_in_shards(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        run(Path(sys.argv[1]), int(sys.argv[2]))
