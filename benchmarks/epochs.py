"""An epoch of rows as long as SST-2's: TextBrewer as its users run it, and hfdistill as its recipes do.

    PYTHONPATH=FOLDER python -m benchmarks.epochs [--examples 67349 --steps 25 --losses logits --output x.json]

A share of the epoch is run: of the batches that the Trainer's sampler makes of all rows, grouped by length, evenly
spaced ones of the first fifty, among which it sorts by length. Every row of the table learns the rows in these, with
the same losses, AdamW, no clipping, one step of each in turn. An epoch is the mean of the steps times their number.

    TextBrewer, as its examples    random batches padded to 128, float32 teacher
    TextBrewer, dynamic padding    random batches padded to their longest row, float32 teacher
    TextBrewer, logits cached      the same; its BasicDistiller keeps the teacher's logits in memory (second epoch)
    TextBrewer, given our batches  batches grouped by length and a bfloat16 teacher, handed to it
    hfdistill, float32 teacher     grouped by length, padded to the longest row
    hfdistill                      the same with a bfloat16 teacher
    hfdistill, cached              the same from the teacher cache on disk (second epoch)

Of rows whose steps are all alike (random batches) only some are timed; the table says how many.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, cycle, islice, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.utils.data import DataLoader

from benchmarks.bare import batches, optimizer_of
from benchmarks.lengths import grouped_batches, sst2_like_lengths
from benchmarks.machine import add_options, description, settle
from benchmarks.models import Inputs, Models, Padding, Size, text_rows
from benchmarks.peers import distiller, objective, unlabelled
from benchmarks.rounds import clock, interleaved
from benchmarks.section import Section
from benchmarks.textbrewer_adaptor import ADVICE, Distiller, available
from benchmarks.trained import Trained, steps_of

LONGEST = 128
SORTED = 50
"""Batches among which the Trainer's sampler sorts by length."""
FIXED, DYNAMIC, KEPT, HANDED = (
    f"TextBrewer, {kind}" for kind in ("as its examples", "dynamic padding", "logits cached", "given our batches")
)
PRECISE, LIVE, CACHED = "hfdistill, float32 teacher", "hfdistill", "hfdistill, cached"
EVERY = {FIXED: 8, DYNAMIC: 4, KEPT: 4}
"""A row -> of how many steps one is timed, where all steps are alike."""


class Epoch:
    """Makes the rows of the table.

    Args:
        models: of the run.
        lengths: of all rows of an epoch, in tokens.
        batch: rows of a batch.
        steps: how many batches are the share that is run.
        losses: "logits" or "layers", see peers.
        folder: for caches, and whatever else is written.
    """

    def __init__(self, models: Models, lengths: list[int], batch: int, steps: int, losses: str, folder: Path) -> None:
        self.models = models
        self.batch = batch
        self.losses = losses
        self.folder = folder
        self.steps = steps
        self.whole = len(lengths) / batch
        kept = share(grouped_batches(lengths, batch), steps)
        self.rows = text_rows([lengths[row] for rows in kept for row in rows])  # batch by batch
        self.paddings = {name: Padding(LONGEST if name == FIXED else None) for name in (FIXED, DYNAMIC, KEPT, HANDED)}
        self.paddings |= {name: Padding() for name in (PRECISE, LIVE, CACHED)}
        self.trained = {name: self._trained(self.paddings[name]) for name in (PRECISE, LIVE, CACHED)}

    def ours(self, name: str) -> Callable[[], None]:
        """The steps of hfdistill.

        Args:
            name: of the row.
        """
        mode = {PRECISE: "live", LIVE: "bf16", CACHED: "cached"}[name]
        if mode == "cached":
            self.trained[name].fill(objective(self.losses))
        return steps_of(self.trained[name].trainer(objective(self.losses), mode))

    def theirs(self, name: str) -> Callable[[], None]:
        """The steps of TextBrewer.

        Args:
            name: of the row.
        """
        if name == KEPT:
            peer = Distiller(self.models.student(), self.models.teacher, self.folder, caching=True)
            few = islice(self._random(name), max(self.steps // EVERY[name], 1))
            data: Iterator[Any] = cycle(peer.cached(list(few)))
        elif name == HANDED:
            peer = self._handed()
            data = unlabelled(self._grouped(name))
        else:
            peer = distiller(self.models, self.losses, self.folder)
            data = self._random(name)
        return peer.steps(data, optimizer_of(peer.student))

    def _trained(self, padding: Padding) -> Trained:
        order = {"train_sampling_strategy": "sequential"}  # the rows stand as the sampler has grouped them
        return Trained(self.models, self.rows, self.batch, self.folder, padding, **order)

    def _random(self, name: str) -> Iterator[Inputs]:
        return unlabelled(batches(self.rows, self.batch, self.models.device, self.paddings[name]))

    def _grouped(self, name: str) -> Iterator[Inputs]:
        loader = DataLoader(self.rows, self.batch, collate_fn=self.paddings[name])
        for inputs in chain.from_iterable(repeat(loader)):
            yield {key: tensor.to(self.models.device) for key, tensor in inputs.items()}

    def _handed(self) -> Distiller:
        """With a bfloat16 teacher; its maps need eager attention, and such a teacher is made for that alone."""
        if self.losses == "logits":
            return Distiller(self.models.student(), self.models.half_teacher, self.folder)
        return Distiller(self.models.student("eager"), self.models.half_eager_teacher, self.folder, True)


def share(grouped: list[list[int]], steps: int) -> list[list[int]]:
    """Evenly spaced batches of those that are sorted among each other, so that all lengths are in it as in the whole.

    Args:
        grouped: an epoch's batches, in the sampler's order.
        steps: how many are wanted.
    """
    together = grouped[:SORTED]
    count = min(steps, len(together))
    return [together[(2 * number + 1) * len(together) // (2 * count)] for number in range(count)]


def measured(options: argparse.Namespace, folder: Path) -> Section:
    """The samples of each row, and what an epoch of it comes to.

    Args:
        options: of this benchmark.
        folder: for whatever is written.
    """
    models = Models(Size.parse(options.teacher), Size.parse(options.student), settle(options))
    lengths = sst2_like_lengths(options.examples, seed=0)
    epoch = Epoch(models, lengths, options.batch, options.steps, options.losses, folder)
    rows = {name: epoch.ours(name) for name in (PRECISE, LIVE, CACHED)}
    if available():
        kinds = (FIXED, DYNAMIC, HANDED, *((KEPT,) if options.losses == "logits" else ()))
        rows |= {name: epoch.theirs(name) for name in kinds}
    every = {name: min(count, max(options.steps // 2, 1)) for name, count in EVERY.items()}
    for name in (PRECISE, LIVE, CACHED):
        epoch.paddings[name].sizes.clear()  # what a cache was filled with, and what was looked at before
    section = Section(f"An epoch of {options.examples:,} rows as long as SST-2's, {options.losses}")
    section.settings = {key: vars(options)[key] for key in ("student", "teacher", "batch", "steps", "losses")}
    section.seconds = interleaved(rows, options.steps, clock(models.device, options.clock), every=every)
    for name, samples in section.seconds.items():
        sizes = epoch.paddings[name].sizes
        timed = sizes[1 : 1 + len(samples)]  # without what warmed up, and what a loader fetches ahead
        section.tokens[name] = statistics.mean(timed or sizes)
    section.figures = {name: statistics.mean(samples) * epoch.whole for name, samples in section.seconds.items()}
    return section


def table(section: Section) -> str:
    """The epochs as Markdown.

    Args:
        section: of `measured`.
    """
    lines = [
        f"### {section.title}",
        "",
        "| epoch | seconds | steps timed | tokens a step | over hfdistill | over cached |",
    ]
    lines.append("|---|--:|--:|--:|--:|--:|")
    for name, seconds in sorted(section.figures.items(), key=lambda item: -item[1]):
        over = [f"{seconds / section.figures[base]:.2f}" for base in (LIVE, CACHED)]
        timed = f"{len(section.seconds[name])} of {section.settings['steps']}"
        lines.append(f"| {name} | {seconds:,.0f} | {timed} | {section.tokens[name]:.0f} | {' | '.join(over)} |")
    return "\n".join([*lines, *("", *(f"* {note}" for note in section.notes))]).rstrip() + "\n"


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print a table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--examples", type=int, default=67349, help="rows of the epoch")
    parser.add_argument("--steps", type=int, default=25, help=f"of these, how many are run, at most {SORTED}")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--losses", choices=("logits", "layers"), default="logits")
    options = parser.parse_args(words)
    with TemporaryDirectory() as folder:
        section = measured(options, Path(folder))
    section.machine = description(options)
    if not available():
        section.notes.append(ADVICE)
    section.save(options.output)
    print(table(section))


if __name__ == "__main__":
    main()
