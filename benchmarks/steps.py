"""A training step beside the least it could cost: every row in turn, in one process.

    python -m benchmarks.steps [--batch 16 --tokens 64 --rounds 5 --rows "floor,naive,kd live" --output x.json]

floor: a bare forward pass of the teacher and a bare step of the student (forward, backward, fused AdamW) on the KL of
the logits; floor bf16: with the teacher in bfloat16. student: that step alone, on labels. Trainer: the same by the
stock Trainer. naive: the floor with all hidden states and attention maps of both models asked for under eager
attention, and 4 mapped layers compared by hand. The others are hfdistill's: an objective, and how it asks its teacher
(see trained.MODES). Rows of random tokens without padding; dropout 0.1; no clipping.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.bare import BARE, batches
from benchmarks.machine import add_options, description, settle
from benchmarks.models import Models, Padding, Size, text_rows
from benchmarks.rounds import Clock, clock, interleaved
from benchmarks.section import Section
from benchmarks.table import printed
from benchmarks.trained import MODES, OBJECTIVES, Trained

BATCHES = 3
"""How many the data set has: enough to be read anew each time, few enough to be cached in seconds."""
ROWS = ("floor", "student", "Trainer", "naive", "kd live", "pkd live", "hidden live", "tinybert live", "minilm live")


class Workbench:
    """Makes rows by name, over one batch shape.

    Args:
        models: of the run.
        batch: rows of a batch.
        tokens: of each row.
        folder: for caches, and whatever else is written.
    """

    def __init__(self, models: Models, batch: int, tokens: int, folder: Path) -> None:
        self.models = models
        self.folder = folder
        self.batch = batch
        self.tokens = tokens

    @cached_property
    def trained(self) -> Trained:
        """The maker of hfdistill's rows."""
        return Trained(self.models, self.rows, self.batch, self.folder)

    @cached_property
    def rows(self) -> object:
        """The data set."""
        return text_rows([self.tokens] * self.batch * BATCHES)

    def step(self, name: str) -> Callable[[], None]:
        """The step of a row.

        Args:
            name: "floor", "student", "naive", "Trainer", or an objective and a mode: "kd live".

        Raises:
            ValueError: there is no such row.
        """
        if name in BARE:
            return BARE[name](self.models, batches(self.rows, self.batch, self.models.device, Padding()))
        if name == "Trainer":
            return self.trained.alone()
        objective, _, mode = name.partition(" ")
        if objective not in OBJECTIVES or mode not in MODES:
            raise ValueError(
                f"there is no row {name!r}: rows are {', '.join(BARE)}, Trainer, or one of {', '.join(OBJECTIVES)} "
                f"with one of {', '.join(MODES)}, such as 'kd live'."
            )
        return self.trained.step(objective, mode)


def measured(workbench: Workbench, names: Sequence[str], rounds: int, now: Clock, warmups: int = 1) -> Section:
    """The samples of these rows.

    Args:
        workbench: what makes them.
        names: of the rows.
        rounds: see interleaved.
        now: see interleaved.
        warmups: see interleaved.
    """
    steps = {name: workbench.step(name) for name in names}
    seconds = interleaved(steps, rounds, now, warmups)
    student, teacher = workbench.models.sizes
    sizes = {"student": str(student), "teacher": str(teacher), "batch": workbench.batch, "tokens": workbench.tokens}
    tokens = {name: float(workbench.batch * workbench.tokens) for name in names}
    title = f"A step of {workbench.batch} rows of {workbench.tokens} tokens"
    return Section(title, sizes | {"rounds": rounds}, seconds, tokens)


def row_names(text: str) -> list[str]:
    """Names out of a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print a table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--title", help="of the table; default: the sizes")
    parser.add_argument("--warmups", type=int, default=1, help="rounds before those that are measured")
    parser.add_argument("--rows", default=",".join(ROWS), help="names of rows, with commas")
    options = parser.parse_args(words)
    place = settle(options)
    models = Models(Size.parse(options.teacher), Size.parse(options.student), place)
    with TemporaryDirectory() as folder:
        workbench = Workbench(models, options.batch, options.tokens, Path(folder))
        section = measured(
            workbench, row_names(options.rows), options.rounds, clock(place, options.clock), options.warmups
        )
    section.title = options.title or section.title
    section.machine = description(options)
    section.save(options.output)
    print(printed(section))


if __name__ == "__main__":
    main()
