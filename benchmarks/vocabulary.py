"""KL over a large vocabulary: peak memory and time of whole logits and of chunks, forward and backward.

    python -m benchmarks.vocabulary [--rows 4 --tokens 512 --vocabulary 128000 --width 512 --output x.json]

"plain" is what one writes by hand: both models' logits, two log_softmax, torch's kl_div. "whole" is the formula of
SoftTargetLoss on the same logits, and "chunked" VocabularyDivergenceLoss. Features and heads are given; memory is what
a pass takes beyond them at its highest, the gradient of the student's head included, each row in a process of its own
(Linux only; on a GPU, what torch has allocated there). Time is taken in turn, in one process.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.machine import add_options, description, device, settle
from benchmarks.memory import resident
from benchmarks.rounds import clock, interleaved
from benchmarks.section import Section
from benchmarks.table import printed
from hfdistill.functional import OutputHead, soft_target_kl, vocabulary_divergence

SIZES = {"rows": 4, "tokens": 512, "vocabulary": 128_000, "width": 512}
GOAL = 0.25
Pass = Callable[[OutputHead, OutputHead], torch.Tensor]


def by_hand(student: OutputHead, teacher: OutputHead) -> torch.Tensor:
    """KL of whole logits, as one writes it without a package."""
    ours, theirs = F.linear(*student).log_softmax(-1), F.linear(*teacher).log_softmax(-1)
    return F.kl_div(ours, theirs, log_target=True, reduction="sum") / ours[..., 0].numel()


def whole(student: OutputHead, teacher: OutputHead) -> torch.Tensor:
    """The formula of SoftTargetLoss on whole logits."""
    return soft_target_kl(F.linear(*student), F.linear(*teacher))


def chunked(student: OutputHead, teacher: OutputHead) -> torch.Tensor:
    """The same formula in chunks."""
    return vocabulary_divergence(student, teacher, soft_target_kl)


PASSES: dict[str, Pass] = {"plain": by_hand, "whole": whole, "chunked": chunked}


def heads(options: argparse.Namespace) -> tuple[OutputHead, OutputHead]:
    """Random features and heads of both models; the student's learn.

    Args:
        options: of this benchmark.
    """
    torch.manual_seed(0)
    place, kind = device(options.device), torch.bfloat16 if options.half else torch.float32
    shapes = (options.rows, options.tokens, options.width), (options.vocabulary, options.width)
    student, teacher = (
        OutputHead(*(torch.randn(shape, device=place, dtype=kind).mul_(options.width**-0.25) for shape in shapes))
        for _ in range(2)
    )
    return student.changed(torch.Tensor.requires_grad_), teacher


def step_of(name: str, student: OutputHead, teacher: OutputHead) -> Callable[[], float]:
    """A forward and backward pass of one row, which gives the loss.

    Args:
        name: of the row.
        student: see `heads`.
        teacher: see `heads`.
    """

    def step() -> float:
        student.features.grad = student.weight.grad = None
        value = PASSES[name](student, teacher)
        torch.autograd.backward(value)
        return value.item()

    return step


def peak(name: str, options: argparse.Namespace) -> dict[str, float]:
    """MB that a pass of one row takes at its highest, and its loss.

    Args:
        name: of the row.
        options: of this benchmark.
    """
    gpu = settle(options).type == "cuda"
    tiny = {"rows": 1, "tokens": 2, "vocabulary": 64}
    step_of(name, *heads(argparse.Namespace(**{**vars(options), **tiny})))()  # loads code, which is no cost of a row
    step = step_of(name, *heads(options))
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = torch.cuda.memory_allocated() / 2**20 if gpu else resident("VmRSS")
    loss = step()
    highest = torch.cuda.max_memory_allocated() / 2**20 if gpu else resident("VmHWM")
    return {"memory": highest - before, "loss": loss}


def in_own_process(name: str, options: argparse.Namespace) -> dict[str, float]:
    """`peak` in a fresh process.

    Raises:
        RuntimeError: it failed.
    """
    kept = (*SIZES, "threads", "device", "matmul")
    given = [f"--{key}={value}" for key in kept if (value := vars(options)[key]) is not None]
    command = [sys.executable, "-m", "benchmarks.vocabulary", "--only", name, *given, *["--half"] * options.half]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"measuring {name} failed:\n{run.stderr}")
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


def measured(options: argparse.Namespace) -> Section:
    """Memory of each row, then time of all in turn.

    Args:
        options: of this benchmark.
    """
    found = {name: in_own_process(name, options) for name in PASSES}
    memory = {name: figures["memory"] for name, figures in found.items()}
    settings = {key: vars(options)[key] for key in SIZES} | {"precision": "bfloat16" if options.half else "float32"}
    section = Section("KL over a large vocabulary, forward and backward", settings | {"bases": ["plain"]})
    section.memory = memory
    section.figures = {f"{name}: peak memory over plain": memory[name] / max(memory["plain"], 1e-3) for name in PASSES}
    section.figures |= {f"{name}: loss": figures["loss"] for name, figures in found.items()}
    section.notes = [f"goal: peak memory of the chunks over plain <= {GOAL}"]
    section.tokens = dict.fromkeys(PASSES, float(options.rows * options.tokens))
    now, both = clock(settle(options), options.clock), heads(options)
    steps = {name: step_of(name, *both) for name in PASSES}
    section.seconds = interleaved(steps, options.rounds, now, warmups=0)  # a step is long; its code is loaded by then
    return section


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print a table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, rounds=2)
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--half", action="store_true", help="features and heads in bfloat16")
    parser.add_argument("--only", choices=list(PASSES), help="measure this row's memory here, and print it as JSON")
    options = parser.parse_args(words)
    if options.only:
        print(json.dumps(peak(options.only, options)))
        return
    section = measured(options)
    section.machine = description(options)
    section.save(options.output)
    print(printed(section))


if __name__ == "__main__":
    main()
