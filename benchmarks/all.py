"""Every benchmark that the page of speed shows, one after another, each in a process of its own.

    python -m benchmarks.all --output FOLDER [--quick] [--only steps-64,peers] [--cpu "an AMD EPYC server processor"]

FOLDER gets one JSON file for each section, with every sample, and speed.md and speed.svg made of them. With --quick
it is a look of a few minutes: fewer rows and rounds, whose figures are for no page. TextBrewer is measured where
PYTHONPATH leads to it (see requirements-peers.txt). Nothing else should run on the machine.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import add_options
from benchmarks.page import write
from benchmarks.section import gathered

CORE = "floor,student,naive,kd live,hidden live,tinybert live"
FULL: dict[str, list[str]] = {
    "imports": ["imports", "--rounds=11"],
    "steps-64": [
        "steps",
        "--rounds=9",
        f"--rows={CORE},floor bf16,tinybert bf16,kd cached,pkd cached",
    ],
    "steps-64-more": [
        "steps",
        "--title=Further rows of 16 x 64 tokens",
        "--rows=floor,student,naive,Trainer,pkd live,minilm live,sp live,floor bf16,kd bf16,minilm bf16,"
        "tinybert autocast,hidden cached,tinybert cached,minilm cached",
    ],
    "steps-128": ["steps", "--tokens=128", "--rounds=7", f"--rows={CORE},tinybert bf16,kd cached"],
    "steps-512": [
        "steps",
        "--batch=4",
        "--tokens=512",
        "--warmups=0",
        f"--rows={CORE},minilm live,tinybert bf16,kd cached",
    ],
    "memory-512": ["memory"],
    "peers": ["peers", "--rounds=7"],  # both are within noise of the floor
    "epochs": ["epochs"],
    "scaling": ["scaling"],
    "vocabulary": ["vocabulary", "--rounds=2"],
}
"""Section -> the module that measures it, and its options."""
QUICK: dict[str, list[str]] = {
    "imports": ["imports"],
    "steps-64": ["steps", "--warmups=0", f"--rows={CORE},tinybert bf16,kd cached,pkd cached"],
    "memory-512": ["memory", "--rows=naive,tinybert live"],
    "peers": ["peers"],
    "epochs": ["epochs", "--steps=4"],
}
ROUNDS = {"quick": 2, "full": 5}


def command(name: str, options: argparse.Namespace) -> list[str]:
    """What measures a section.

    Args:
        name: of the section.
        options: of the whole.
    """
    module, *own = (QUICK if options.quick else FULL)[name]
    rounds = options.rounds or ROUNDS["quick" if options.quick else "full"]
    kept = ("teacher", "student", "threads", "device", "matmul", "clock", "cpu")
    given = [f"--{key}={value}" for key in kept if (value := vars(options)[key]) is not None]
    return [
        *(sys.executable, "-m", f"benchmarks.{module}", *given, f"--rounds={rounds}", *own),
        f"--output={options.output / f'{name}.json'}",
    ]


def run(name: str, options: argparse.Namespace) -> bool:
    """Measure a section, saying how long it took and why it failed; whether it did not.

    Args:
        name: of the section.
        options: of the whole.
    """
    count = str(options.threads)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
    start = time.monotonic()
    done = subprocess.run(
        command(name, options), env={**os.environ, **threads}, capture_output=True, text=True, check=False
    )
    reason = "" if done.returncode == 0 else f", failed:\n{(done.stderr or done.stdout).strip()}"
    print(f"{name}: {time.monotonic() - start:.0f} s{reason}", flush=True)
    return done.returncode == 0


def main(words: Sequence[str] | None = None) -> None:
    """Measure all sections and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, rounds=0)
    parser.add_argument("--quick", action="store_true", help="a look of a few minutes")
    parser.add_argument("--only", help="sections, with commas; default: all")
    options = parser.parse_args(words)
    options.output = options.output or Path("outputs/benchmarks")
    names = options.only.split(",") if options.only else list(QUICK if options.quick else FULL)
    there = [name for name in names if importlib.util.find_spec(f"benchmarks.{command(name, options)[2][11:]}")]
    options.output.mkdir(parents=True, exist_ok=True)
    succeeded = [run(name, options) for name in there]
    text = write(gathered(options.output.glob("*.json")), options.output)
    print(f"\n{text}")
    if not all(succeeded):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
