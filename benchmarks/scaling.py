"""How the cost over the floor grows: with the layers mapped, the length of the rows and their number.

    python -m benchmarks.scaling [--rounds 5 --output x.json]

Hidden states and attention maps of each mapped pair of layers, live, in float32. For the layers the student is as
deep as the teacher. Each point is measured in turn with the floor of its own shape; where the shape is varied, the
naive loop is too.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.machine import add_options, description, settle
from benchmarks.models import Models, Size
from benchmarks.rounds import Ratio, clock, interleaved, ratio
from benchmarks.section import Section
from benchmarks.steps import Workbench
from benchmarks.table import described, spread
from benchmarks.trained import steps_of
from hfdistill import AttentionMapLoss, HiddenStateLoss, LayerMap, Objective

LAYERS = (1, 2, 4, 8, 12)
SHAPES = ((1, 64), (4, 64), (8, 64), (4, 128), (2, 256), (1, 512))
FEW = 4
"""Rows of the batch where layers are counted: small, since the ratio hardly depends on it."""


def mapped(count: int, depth: int) -> Objective:
    """Hidden states and attention maps of the last `count` layers of two models of one depth.

    Args:
        count: of the pairs.
        depth: of both.
    """
    pairs = [(layer, layer) for layer in range(depth - count + 1, depth + 1)]
    layers = LayerMap.explicit(pairs)
    return Objective(hidden=HiddenStateLoss(layers, shared_projector=True), attention=AttentionMapLoss(layers))


def layer_rows(models: Models, tokens: int, folder: Path) -> dict[str, Callable[[], None]]:
    """The floor, and a row for each number of mapped layers of two models of one depth."""
    depth = models.sizes[0].layers
    bench = Workbench(models, FEW, tokens, folder)
    counts = sorted({min(count, depth) for count in LAYERS})
    rows = {f"{count} layers": steps_of(bench.trained.trainer(mapped(count, depth), "live")) for count in counts}
    return {"floor": bench.step("floor"), **rows}


def shape_rows(models: Models, batch: int, tokens: int, folder: Path) -> dict[str, Callable[[], None]]:
    """The floor, TinyBERT's objective and the naive loop on one batch shape."""
    bench = Workbench(models, batch, tokens, folder)
    return {name: bench.step(name) for name in ("floor", "tinybert live", "naive")}


def measured(options: argparse.Namespace, shapes: Sequence[tuple[int, int]], folder: Path) -> Section:
    """Every point, each with its floor.

    Args:
        options: of this benchmark.
        shapes: batches and tokens.
        folder: for whatever is written.
    """
    place = settle(options)
    sizes = Size.parse(options.teacher), Size.parse(options.student)
    settings = {"student": options.student, "teacher": options.teacher, "rounds": options.rounds}
    section = Section("Cost over the floor: layers mapped, length, batch", settings)
    models = Models(*sizes, place)
    deep = Models(sizes[0], replace(sizes[1], layers=sizes[0].layers), place)
    title = f"{FEW} x {options.tokens}, student of {sizes[0].layers} layers"
    tables = {title: partial(layer_rows, deep, options.tokens, folder)}
    tables |= {f"{batch} x {tokens}": partial(shape_rows, models, batch, tokens, folder) for batch, tokens in shapes}
    for table, rows in tables.items():  # one after another: the rows of all at once would not fit into memory
        samples = interleaved(rows(), options.rounds, clock(place, options.clock))
        section.seconds |= {f"{table}: {name}": values for name, values in samples.items()}
    return section


def over_floor(section: Section) -> dict[str, Ratio]:
    """Each point over the floor of its own shape.

    Args:
        section: of `measured`.
    """
    floors = {name: f"{name.rpartition(': ')[0]}: floor" for name in section.seconds}
    return {name: ratio(section.seconds[name], section.seconds[floor]) for name, floor in floors.items()}


def table(section: Section) -> str:
    """The points as Markdown, each over its floor.

    Args:
        section: of `measured`.
    """
    lines = [f"### {section.title}", "", described(section), "", "| shape | row | seconds | over its floor |"]
    lines.append("|---|---|--:|--:|")
    for name, over in over_floor(section).items():
        shape, _, row = name.rpartition(": ")
        middle = statistics.median(section.seconds[name])
        lines.append(f"| {shape} | {row} | {middle:.3f} | {'' if row == 'floor' else spread(over)} |")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print a table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--tokens", type=int, default=64, help="of a row, where layers are counted")
    parser.add_argument("--shapes", help="batch x tokens, with commas; default: 1x64,4x64,8x64,4x128,2x256,1x512")
    options = parser.parse_args(words)
    shapes = list(SHAPES)
    if options.shapes:
        shapes = [
            (int(batch), int(tokens)) for batch, tokens in (text.split("x") for text in options.shapes.split(","))
        ]
    with TemporaryDirectory() as folder:
        section = measured(options, shapes, Path(folder))
    section.machine = description(options)
    section.save(options.output)
    print(table(section))


if __name__ == "__main__":
    main()
