"""Peak memory of a training step: every row in a process of its own.

    python -m benchmarks.memory [--batch 4 --tokens 512 --rows "floor,naive,tinybert live" --output x.json]

What a row takes: weights, gradients, optimizer and activations, at the highest in two steps. On the processor that is
what the process holds beyond the imported libraries (Linux only); on a GPU, what torch has allocated there.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.machine import add_options, description, device, settle
from benchmarks.models import Models, Size
from benchmarks.section import Section
from benchmarks.steps import Workbench, row_names
from benchmarks.table import printed

ROWS = ("floor", "student", "naive", "tinybert live", "tinybert bf16")
AT_ONCE = 2
"""Processes that run beside each other: memory, unlike time, is not disturbed by that."""
STEPS = 2


def resident(kind: str) -> float:
    """This process's memory now ("VmRSS") or at its highest ("VmHWM"), in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(kind))


def peak(name: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """MB that a row takes at its highest, and the process altogether.

    Args:
        name: of the row.
        options: of this benchmark.
        folder: for what a row writes.
    """
    place = settle(options)
    tiny = Workbench(Models(Size(2, 32, 2), Size(2, 32, 2), place), 2, 8, folder / "tiny")
    tiny.step(name)()  # what the libraries load when they are first used is no cost of the row
    gpu = place.type == "cuda"
    before = 0.0 if gpu else resident("VmRSS")
    models = Models(Size.parse(options.teacher), Size.parse(options.student), place)
    step = Workbench(models, options.batch, options.tokens, folder).step(name)
    if gpu:
        torch.cuda.reset_peak_memory_stats(place)
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # making random weights is no part of it
    for _ in range(STEPS):
        step()
    highest = torch.cuda.max_memory_allocated(place) / 2**20 if gpu else resident("VmHWM")
    return {"memory": highest - before, "process": highest}


def in_own_process(name: str, options: argparse.Namespace) -> dict[str, float]:
    """`peak` in a fresh process.

    Args:
        name: of the row.
        options: of this benchmark.

    Raises:
        RuntimeError: it failed.
    """
    kept = ("teacher", "student", "threads", "device", "matmul", "batch", "tokens")
    given = [f"--{key}={value}" for key in kept if (value := vars(options)[key]) is not None]
    command = [sys.executable, "-m", "benchmarks.memory", "--only", name, *given]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"measuring the memory of {name} failed:\n{run.stderr}")
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


def measured(names: Sequence[str], options: argparse.Namespace) -> Section:
    """Every row's peak.

    Args:
        names: of the rows.
        options: of this benchmark.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(zip(names, pool.map(lambda name: in_own_process(name, options), names), strict=True))
    settings = {key: vars(options)[key] for key in ("student", "teacher", "batch", "tokens")}
    title = f"Peak memory of a step of {options.batch} rows of {options.tokens} tokens"
    section = Section(title, settings, memory={name: figures["memory"] for name, figures in found.items()})
    whole = {f"{name}: whole process, MB": figures["process"] for name, figures in found.items()}
    section.figures = whole if device(options.device).type == "cpu" else {}
    return section


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print a table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rows", default=",".join(ROWS), help="names of rows, with commas")
    parser.add_argument("--only", help="measure this row here, and print its figures as JSON")
    options = parser.parse_args(words)
    if options.only:
        with TemporaryDirectory() as folder:
            print(json.dumps(peak(options.only, options, Path(folder))))
        return
    section = measured(row_names(options.rows), options)
    section.machine = description(options)
    section.save(options.output)
    print(printed(section))


if __name__ == "__main__":
    main()
