"""NaN in one of two processes that hold shards of a student.

    torchrun --nproc_per_node 2 sharded_nonfinite.py FOLDER MODE

MODE is fsdp2, zero2 or zero3. Not a test itself: test_sharded_nonfinite.py starts it.
"""

import json
import os
import sys
from pathlib import Path

import torch
from broken_toys import STEPS, FaultyLoss
from safetensors.torch import save_file
from sharded_runs import gathered, settings
from toy_models import toy_bert
from training_toys import logged, text_rows, trainer_of

from hfdistill import HiddenStateLoss, Objective

CASES = {"sound": ("stop", 1, STEPS + 1), "stop": ("stop", STEPS, 1), "skip": ("skip", STEPS, 1)}
"""Policy, number of steps, and the step that breaks."""


def run(folder: Path, mode: str) -> None:
    """Train each case, and write what was raised and the weights that it ended with."""
    for name, (policy, steps, at) in CASES.items():
        changes = {"max_steps": steps, "on_nonfinite": policy, "optim": "adamw_torch_fused", "max_grad_norm": 1.0}
        args = settings(mode, folder / name, 2, changes)
        objective = Objective(hidden=HiddenStateLoss(), odd=FaultyLoss(at, process=1))
        torch.manual_seed(5)
        told, trainer = ["", ""], None
        try:
            trainer = trainer_of(folder, objective, toy_bert(width=8), text_rows(16), args=args)
            trainer.train()
        except (RuntimeError, ValueError) as error:
            told = [type(error).__name__, str(error)]
        log = [] if trainer is None else [line.get("skipped_updates") for line in logged(trainer)]
        weights = {} if trainer is None else gathered(trainer)
        rank = torch.distributed.get_rank()
        (folder / f"{name}-{rank}.json").write_text(json.dumps([*told, log]), encoding="utf-8")
        if rank == 0:
            save_file(weights, folder / f"{name}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[2].startswith("zero"):
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        deepspeed.init_distributed("gloo")
    run(Path(sys.argv[1]), sys.argv[2])
