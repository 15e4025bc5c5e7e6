"""Where a row's time goes beyond another's: seconds of each operator of torch in both.

    python -m benchmarks.profiles "tinybert live" [--base floor --batch 16 --tokens 64 --rounds 3]

For a goal that is missed: what the row does more, and what of it the base does as well. Seconds are those of the
operator itself, without the operators that it calls; what is left to the whole step is Python's.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import add_options, settle
from benchmarks.models import Models, Size
from benchmarks.steps import Workbench

SHOWN = 15


def operators(step: Callable[[], object], rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds of each operator in one step, its own.

    Args:
        step: of a row.
        rounds: how many are averaged, after one that is not.
        device: whose seconds they are.
    """
    gpu = device.type == "cuda"
    step()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as found:
        for _ in range(rounds):
            step()
    return {
        event.key: (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e6 / rounds
        for event in found.key_averages()
    }


def table(name: str, row: Mapping[str, float], base_name: str, base: Mapping[str, float]) -> str:
    """The operators that differ most, as Markdown.

    Args:
        name: of the row.
        row: seconds by operator.
        base_name: what it is set beside.
        base: its seconds by operator.
    """
    more = {key: row.get(key, 0.0) - base.get(key, 0.0) for key in {*row, *base}}
    lines = [f"| operator | {base_name} | {name} | more |", "|---|--:|--:|--:|"]
    for key in sorted(more, key=lambda key: (-abs(more[key]), key))[:SHOWN]:
        lines.append(f"| {key} | {base.get(key, 0.0):.4f} | {row.get(key, 0.0):.4f} | {more[key]:+.4f} |")
    total, other = sum(row.values()), sum(base.values())
    return "\n".join([*lines, f"| all | {other:.4f} | {total:.4f} | {total - other:+.4f} |"]) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    """Profile a row and its base, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", help="name of a row, see benchmarks.steps")
    parser.add_argument("--base", default="floor", help="name of the row that it is set beside")
    add_options(parser, rounds=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args(words)
    place = settle(options)
    with TemporaryDirectory() as folder:
        models = Models(Size.parse(options.teacher), Size.parse(options.student), place)
        bench = Workbench(models, options.batch, options.tokens, Path(folder))
        base, row = (operators(bench.step(name), options.rounds, place) for name in (options.base, options.row))
    print(table(options.row, row, options.base, base))


if __name__ == "__main__":
    main()
