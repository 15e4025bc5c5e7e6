"""The same program in two processes: torchrun starts it again, and there `equivalences` becomes `serve`.

What is to be run lies in a folder as request.json; each process leaves <rank>.safetensors and <rank>.json there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load_file, save_file

from hfdistill.equivalence.short_runs import MakeTrainer, Outcome, short_run

FOLDER = "HFDISTILL_EQUIVALENCE_FOLDER"
"""The environment variable that tells a process that it is one of two, and where its request lies."""

PROCESSES = 2
_REQUEST = "request.json"
_LAST_WORDS = 12


def in_two_processes(
    command: Sequence[str], folder: Path, changes: Mapping[str, Any], aside: Collection[str], cpu: bool
) -> list[Outcome]:
    """Run the program in two processes and return what each ended with.

    Args:
        command: starts the program, without the name of Python: a script and its words, or -m, a module and its words.
        folder: empty, for what goes back and forth.
        changes: training arguments of the still run; see short_run.
        aside: terms of the objective that get the weight 0.
        cpu: on the processor, through gloo.

    Raises:
        RuntimeError: a process failed, or the two did not find each other.
    """
    request = {"changes": {**changes, "output_dir": str(folder / "run")}, "aside": sorted(aside)}
    (folder / _REQUEST).write_text(json.dumps(request), encoding="utf-8")
    environment = os.environ | {FOLDER: str(folder)} | ({"ACCELERATE_USE_CPU": "true"} if cpu else {})
    environment.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // PROCESSES)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}"]
    ended = subprocess.run(  # noqa: S603  # the program that runs already
        [*launcher, *command], env=environment, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        said = "\n".join(_reasons(ended.stderr or ended.stdout))
        raise RuntimeError(f"{' '.join(command)!r} failed in {PROCESSES} processes:\n{said}")
    return [_outcome(folder, rank) for rank in range(PROCESSES)]


def serve(make_trainer: MakeTrainer, folder: Path) -> NoReturn:
    """Be one of the two processes: make the run that is asked for, leave what came of it, and end.

    Raises:
        RuntimeError: the processes are not connected.
        SystemExit: always, when all is done.
    """
    request = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
    found: list[int] = []

    def counted(**changes: Any) -> Any:
        trainer = make_trainer(**changes)
        found[:] = [int(trainer.args.world_size), int(trainer.args.process_index)]
        if found[0] != PROCESSES:
            raise RuntimeError(
                f"torchrun started {PROCESSES} processes, but each is in a group of {found[0]}: they are not "
                "connected, and would train two students. See that the training arguments choose the device as "
                "they did in one process."
            )
        return trainer

    _, outcome = short_run(counted, request["changes"], still=True, aside=request["aside"])
    rank = found[1]
    save_file({name: value.contiguous() for name, value in outcome.weights.items()}, folder / f"{rank}.safetensors")
    (folder / f"{rank}.json").write_text(json.dumps(outcome.log), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    raise SystemExit(0)


def _outcome(folder: Path, rank: int) -> Outcome:
    weights, log = folder / f"{rank}.safetensors", folder / f"{rank}.json"
    if not (weights.is_file() and log.is_file()):
        raise RuntimeError(
            f"process {rank} ended without a word. The program must call equivalences(...) again when it is started "
            "again, with the same words."
        )
    return Outcome(load_file(weights), json.loads(log.read_text(encoding="utf-8")))


def _reasons(said: str) -> list[str]:
    """The last words of a process that failed, without torchrun's own."""
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":", 1)[0] and "ChildFailedError" not in line]
    return errors[-1:] or lines[-_LAST_WORDS:]
