"""Makes a trainer in whatever processes a launcher started, and writes what became of it; not a test itself.

    LAUNCHER launches.py FOLDER WAY...

Each WAY is a way to make the arguments: "asked" (nothing said of devices), "cpu", "fsdp" (on the CPU, as it is), or
"sharded" (a CPU that Accelerate takes for a GPU; see sharded_runs.py). Process r writes FOLDER/r-WAY.json: the message
that it was refused with, or how many processes it trained a step in, how, and to what loss. A process that was told no
rank is number 0.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from toy_models import toy_bert
from training_toys import arguments, logged, text_rows, trainer_of

from hfdistill import HiddenStateLoss, Objective, SoftTargetLoss


def outcome(folder: Path, way: str) -> dict[str, Any]:
    """What becomes of a trainer that is made in this way."""
    changes: dict[str, Any] = {"use_cpu": way != "asked", "max_steps": 1}
    args = arguments(folder, **changes, **({"fsdp": True} if way == "fsdp" else {}))
    args.per_device_train_batch_size = 8 // args.world_size
    if way == "sharded":
        PartialState().distributed_type = DistributedType.MULTI_GPU
    objective = Objective(kd=SoftTargetLoss(), hidden=HiddenStateLoss())
    try:
        trainer = trainer_of(folder, objective, toy_bert(width=8), text_rows(8), args=args)
    except ValueError as error:
        return {"refused": str(error)}
    trainer.train()
    kind = trainer.accelerator.distributed_type.value
    sharded = trainer.placement.sharded
    return {"kind": kind, "processes": args.world_size, "sharded": sharded, "loss": logged(trainer)[0]["loss"]}


def main() -> None:
    """Try each way."""
    folder = Path(sys.argv[1])
    for way in sys.argv[2:]:
        found = outcome(folder / way, way)
        (folder / f"{os.environ.get('RANK', 0)}-{way}.json").write_text(json.dumps(found), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
