"""The command `hfdistill`: `train` a recipe, or list the `methods`."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfdistill.losses import DistillationLoss


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        words: without the program's name; None: this process's own.

    Returns:
        0, or 2 for bad input, which is explained on standard error.
    """
    parser = argparse.ArgumentParser(prog="hfdistill", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train", help="train a recipe: one YAML or JSON file, or flags, or the file and then flags", add_help=False
    )
    train.add_argument("words", nargs=argparse.REMAINDER)
    commands.add_parser("methods", help="list presets and losses: paper, kind of knowledge, what they need")
    given, rest = parser.parse_known_args(words)
    if given.command == "methods":
        print(methods())
        return 0
    return _train([*given.words, *rest])


def methods() -> str:
    """Presets and losses as a text: what each is, the paper it is from, and what it must see of a model."""
    from hfdistill.losses import CATALOGUE
    from hfdistill.presets import PRESETS

    lines = ["Presets (objective='name', or {preset: name, ...} in a configuration):"]
    for name, function in PRESETS.items():
        signature = inspect.signature(function, eval_str=True).replace(return_annotation=inspect.Signature.empty)
        losses = [type(loss).__name__ for loss in function().losses.values()]
        lines += [f"  {name}{signature}", *_first_two_paragraphs(function), f"      Losses: {', '.join(losses)}."]
    lines.append("Losses (objective terms, {loss: Name, ...}):")
    for name, loss in CATALOGUE.items():
        kind = loss.__module__.split(".")[2]
        heading = f"  {name} ({'labels' if kind == 'task' else kind})"
        lines += [heading, *_first_two_paragraphs(loss), f"      Needs of the student: {_needs(loss())}."]
    return "\n".join(lines)


def _needs(loss: DistillationLoss) -> str:
    """What a loss with its defaults must see, told by binding it to two models of any size."""
    from hfdistill.anatomy import Anatomy

    loss.bind(Anatomy("student", 4, 8, heads=2), Anatomy("teacher", 8, 8, heads=2))
    ours, _ = loss.needs()
    kinds = [field.name.replace("_", " ") for field in fields(ours) if vars(ours)[field.name]]
    return ", ".join(kinds)


def _train(words: list[str]) -> int:
    from hfdistill.recipe_arguments import parse_recipe
    from hfdistill.text_classification import distil_text_classifier

    try:
        recipe, args = parse_recipe(words)
    except (FileNotFoundError, TypeError, ValueError) as error:
        print(f"hfdistill train: {error}", file=sys.stderr)
        return 2
    print(distil_text_classifier(recipe, args).table())
    return 0


def _first_two_paragraphs(documented: object) -> list[str]:
    """The sentence that says what it is, and the citation."""
    paragraphs = (inspect.getdoc(documented) or "").split("\n\n")
    chosen = paragraphs[:1] + [text for text in paragraphs[1:] if "http" in text][:1]
    return [f"      {line}" for text in chosen for line in text.splitlines()]
