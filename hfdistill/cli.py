"""The command `hfdistill`: `check`, `cache`, `train` recipes, `report` results, `export`, `push` students, `methods`.

Each command is a parser and one call of the function that the library offers for it; nothing is done here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial

_BAD_INPUT = (
    FileNotFoundError,
    NotADirectoryError,
    PermissionError,
    ConnectionError,
    ImportError,
    TypeError,
    ValueError,
)
"""What the library raises of input that cannot be right, of no login and no network; anything else is a bug."""


_OF_RECIPES = (["train"], ["check"], ["cache"])


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        words: without the program's name; None: this process's own.

    Returns:
        0; 1 where `check` found an error; 2 for bad input, which is explained on standard error.
    """
    words = list(sys.argv[1:] if words is None else words)
    # what follows one of these is the recipe's, flags included: argparse would sort flags and values apart
    given = argparse.Namespace(command=words[0], words=words[1:]) if words[:1] in _OF_RECIPES else None
    given = given or _parser().parse_args(words)
    given.status = 0
    try:
        with redirect_stdout(sys.stderr):  # what libraries print (DeepSpeed) is no part of the answer
            answer = _COMMANDS[given.command](given)
        print(answer)
    except _BAD_INPUT as error:
        print(f"hfdistill {given.command}: {error}", file=sys.stderr)
        return 2
    return int(given.status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hfdistill", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="train a recipe: one YAML or JSON file, or flags, or the file and then flags")
    commands.add_parser(
        "check", help="examine what `train` would run, in its words; --json, and --equivalence for a few steps of it"
    )
    commands.add_parser(
        "cache", help="keep what the teacher of a recipe shows, in the words of `train`; --estimate tells the size"
    )
    add = partial(commands.add_parser, allow_abbrev=False)
    listing = add("methods", help="list presets and losses: paper, kind of knowledge, what they need")
    listing.add_argument("--markdown", action="store_true", help="as the page docs/methods.md")
    _add_report(add("report", help="compare teacher, control and students: report.md, .json, .html"))
    _add_export(add("export", help="write a student as ONNX, held to the torch model on real inputs"))
    _add_push(add("push", help="push a student with its processor, card and results to the hub"))
    return parser


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", metavar="DIR", help="a recipe's output folder, or a student's folder")
    parser.add_argument("--output", help="folder to write into; the first DIR without it")
    parser.add_argument("--no-measure", action="store_true", help="leave out what must be run: latency, memory, CKA")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a student's folder")
    parser.add_argument("--output", help="file to write; DIR/model.onnx without it")
    parser.add_argument(
        "--batch", help="safetensors file with real inputs to check on; found beside a recipe's student"
    )
    parser.add_argument("--tolerance", type=float, help="largest difference of a logit that is accepted")


def _add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a student's folder")
    parser.add_argument("repository", metavar="REPO", help="its name on the hub, user/name")
    parser.add_argument("--private", action="store_true", default=None, help="make the repository private")
    parser.add_argument("--revision", help="branch to push to; made if it is not there")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--merge_adapter", action="store_true", help="push the model with its adapter merged in")
    parser.add_argument("--message", help="of the commit")


def _methods(given: argparse.Namespace) -> str:
    from hfdistill.methods import as_markdown, as_text

    return as_markdown().removesuffix("\n") if given.markdown else as_text()


def _train(given: argparse.Namespace) -> str:
    from hfdistill.recipe_arguments import run_recipe

    return run_recipe(given.words).table()


def _check(given: argparse.Namespace) -> str:
    from hfdistill.checks.recipe import examine_recipe

    own = {"--json", "--equivalence"}
    words = [word for word in given.words if word not in own]
    examined = examine_recipe(words, equivalence="--equivalence" in given.words)
    given.status = 0 if examined.sound else 1
    return examined.as_json() if "--json" in given.words else str(examined)


def _cache(given: argparse.Namespace) -> str:
    from hfdistill.teacher_cache.recipes import cache_recipe

    words = [word for word in given.words if word != "--estimate"]
    return cache_recipe(words, estimate="--estimate" in given.words)


def _report(given: argparse.Namespace) -> str:
    from hfdistill.report.analysis import write_report
    from hfdistill.report.markdown import as_markdown

    output = given.output or given.folders[0]
    return as_markdown(write_report(given.folders, output, measure=not given.no_measure))


def _export(given: argparse.Namespace) -> str:
    from hfdistill.export import export_onnx, read_batch

    options = {} if given.tolerance is None else {"tolerance": given.tolerance}
    batch = None if given.batch is None else read_batch(given.batch)
    return str(export_onnx(given.folder, given.output, batch=batch, **options))


def _push(given: argparse.Namespace) -> str:
    from hfdistill.publishing.push import push_student

    pushed = push_student(
        given.folder,
        given.repository,
        private=given.private,
        revision=given.revision,
        create_pr=given.create_pr,
        commit_message=given.message,
        merge_adapter=given.merge_adapter,
    )
    return str(pushed.pr_url or pushed.commit_url)


_COMMANDS = {
    "train": _train,
    "check": _check,
    "cache": _cache,
    "methods": _methods,
    "report": _report,
    "export": _export,
    "push": _push,
}
