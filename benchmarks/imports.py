"""What an import costs: processor seconds, each in a fresh interpreter, in turn.

python -m benchmarks.imports [--rounds 5 --output x.json]
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.machine import add_options, description
from benchmarks.section import Section
from benchmarks.table import printed

STATEMENTS = (
    "import hfdistill",
    "from transformers import Trainer",
    "from hfdistill import DistillationTrainer",
)
PROGRAM = "import time; start = time.process_time(); {}; print(time.process_time() - start)"


def seconds(statement: str) -> float:
    """Processor seconds of a statement in an interpreter of its own.

    Args:
        statement: of Python.
    """
    command = [sys.executable, "-c", PROGRAM.format(statement)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def measured(rounds: int) -> Section:
    """The samples of each statement.

    Args:
        rounds: how many, after one that fills the disk's cache.
    """
    samples: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for number in range(-1, rounds):
        first = number % len(STATEMENTS)
        for statement in (*STATEMENTS[first:], *STATEMENTS[:first]):
            taken = seconds(statement)
            if number >= 0:
                samples[statement].append(taken)
    settings = {"rounds": rounds, "bases": [STATEMENTS[1]]}
    return Section("Processor seconds of an import, in a fresh interpreter", settings, samples)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print a table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args(words)
    section = measured(options.rounds)
    section.machine = description(options)
    section.save(options.output)
    print(printed(section))


if __name__ == "__main__":
    main()
