"""One process of a run of two, the second of which is killed or stopped in the middle of it.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 python lost_process.py FOLDER SIGKILL

Not a test itself: test_processes.py starts both, without torchrun, which would end the first one by itself.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from training_toys import trainer_of
from transformers import TrainerCallback

STEP, TIMEOUT = 3, 20


class Fate(TrainerCallback):
    """Sends this process a signal after STEP updates."""

    def __init__(self, name: str) -> None:
        self.signal = getattr(signal, name)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See TrainerCallback."""
        if args.process_index == 1 and state.global_step == STEP:
            os.kill(os.getpid(), self.signal)


if __name__ == "__main__":
    trainer = trainer_of(
        Path(sys.argv[1]),
        callbacks=[Fate(sys.argv[2])],
        max_steps=50,
        ddp_timeout=TIMEOUT,
        save_strategy="steps",
        save_steps=2,
        dataloader_drop_last=True,
    )
    if trainer.accelerator.num_processes != 2:
        raise ValueError(f"expected 2 connected processes, got {trainer.accelerator.num_processes}")
    print("together", flush=True)
    trainer.train()
