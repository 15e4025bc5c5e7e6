"""The command `hfdistill`: `train` a recipe, or list the `methods`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


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
    listing = commands.add_parser("methods", help="list presets and losses: paper, kind of knowledge, what they need")
    listing.add_argument("--markdown", action="store_true", help="as the page docs/methods.md")
    given, rest = parser.parse_known_args(words)
    if given.command == "methods":
        from hfdistill.methods import as_markdown, as_text

        print(as_markdown() if given.markdown else as_text(), end="" if given.markdown else "\n")
        return 0
    return _train([*given.words, *rest])


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
