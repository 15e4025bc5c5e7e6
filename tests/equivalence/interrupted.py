"""One training run killed at random moments and resumed each time, beside the same run left alone.

    python interrupted.py FOLDER KILLS SEED

Writes FOLDER/kills.json, one entry per kill, and two runs: FOLDER/whole and FOLDER/killed. Not a test itself:
test_kill.py starts it. Importing torch and transformers takes seconds; a fork of a process that has imported them
trains at once, and dies of SIGKILL as any other does.
"""

import json
import os
import random
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from toy_models import toy_bert
from training_toys import text_rows, trainer_of
from transformers import TrainerCallback

from hfdistill import DistillationTrainer, HiddenStateLoss, Objective, SoftTargetLoss
from hfdistill.checkpoints.folders import UNFINISHED, checkpoints, last_complete_checkpoint
from hfdistill.losses.relation.contrastive_memory import ContrastiveMemoryLoss
from hfdistill.schedules import Linear

STEPS_PER_KILL = 3  # at most, so that a run of this many steps for each kill cannot end before the last one
ROWS = 24


class Progress(TrainerCallback):
    """Tells the watching process of each step that begins."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        os.write(self.pipe, b".")


def trainer(folder: Path, steps: int, pipe: int) -> DistillationTrainer:
    """A run with all that a checkpoint must hold: dropout, projector, memory, schedules, momentum, half a log line."""
    torch.manual_seed(9)
    objective = Objective(
        kd=SoftTargetLoss(weight=Linear(1.0, 0.1)), hidden=HiddenStateLoss(), crd=ContrastiveMemoryLoss(4, dimension=8)
    )
    student = toy_bert(width=8, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    return trainer_of(
        folder,
        objective,
        student,
        text_rows(ROWS),
        callbacks=[Progress(pipe)],
        max_steps=steps,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=3,
        optim="adamw_torch",
        learning_rate=1e-2,
        lr_scheduler_type="linear",
        warmup_steps=2,
        max_grad_norm=1.0,
        logging_steps=3,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
    )


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """Do something in a fork; returns its process and the end of a pipe that tells of its steps."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.close(reading)
    try:
        work(writing)
        os._exit(0)
    except BaseException:  # noqa: BLE001  a fork must not go on with its parent's work
        traceback.print_exc()
        os._exit(1)


def unfinished(folder: Path) -> set[tuple[str, int]]:
    """Name and time of what a save has begun and not ended; what an earlier kill left stays until the next save."""
    return {(path.name, path.stat().st_mtime_ns) for path in (folder / UNFINISHED).glob("*")}


def killed_at(work: Callable[[int], None], draw: random.Random, folder: Path) -> dict[str, Any]:
    """Kill a process some steps on, at a moment within the step; says what was being done."""
    before = unfinished(folder)  # before the fork: it may have cleared it by the time that it is looked at
    child, pipe = forked(work)
    steps, last, length = draw.randint(0, STEPS_PER_KILL - 1), time.monotonic(), 0.1
    for step in range(steps):
        if not select.select([pipe], [], [], 60)[0] or not os.read(pipe, 1):
            break
        length, last = time.monotonic() - last if step else length, time.monotonic()
    time.sleep(draw.random() * length)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(pipe)
    left = sorted(name for name, _ in unfinished(folder) - before)
    return {
        "killed": os.WIFSIGNALED(status),
        "steps": steps,
        "unfinished": left,
        "checkpoints": [path.name for path in checkpoints(folder)],
    }


def finished(child: int, pipe: int) -> None:
    """Wait for a process that is left alone."""
    while os.read(pipe, 4096):
        pass
    _, status = os.waitpid(child, 0)
    os.close(pipe)
    if status:
        raise RuntimeError(f"the run ended with status {status}")


def main(folder: Path, kills: int, seed: int) -> None:
    """Both runs."""
    steps, draw, told = kills * STEPS_PER_KILL, random.Random(seed), []
    finished(*forked(lambda pipe: trainer(folder / "whole", steps, pipe).train()))
    place = folder / "killed"

    def resumed(pipe: int) -> None:
        trainer(place, steps, pipe).train(resume_from_checkpoint=last_complete_checkpoint(place) is not None)

    for _ in range(kills):
        told.append(killed_at(resumed, draw, place))
    finished(*forked(resumed))
    (folder / "kills.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
