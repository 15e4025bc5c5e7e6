"""The house's manners, kept: sizes, names, docstrings, and what is never written in this project."""

import ast
import re
from collections.abc import Iterator

import pytest
from source_tree import CODE_FOLDERS, PACKAGE, REPOSITORY, FunctionNode, Source, project_files, sources

FILE_LINES = 350
FUNCTION_LINES = 40
NAMES_THAT_SAY_NOTHING = {"utils", "util", "core", "common", "helpers", "helper", "manager", "managers", "misc"}
# Where hasattr and getattr are in order: (file, the call, or * for any) -> why. Everywhere else they guess.
MAY_ASK_FOR_ATTRIBUTES = {
    ("hfdistill/__init__.py", "*"): "PEP 562: a public name is looked up in its submodule",
    ("hfdistill/anatomy.py", "*"): "this is where the project finds out how a transformers model is built",
    (
        "hfdistill/attention_inputs.py",
        "getattr(module, 'is_causal', True)",
    ): "what transformers' own backends ask, word for word",
}
# Traces of the machine on which something was written, and hosts that an installer should be told, not a source
# file. Joined from pieces so that this file does not match itself.
NEVER_WRITTEN = re.compile(
    "|".join(
        (
            r"(?<![\w.~-])/" + r"(?:work|farm|root)/",
            r"/tmp/" + r"bash",
            r"/opt/" + r"(?:pypi|wheels)",
            r"\bpypi" + r"\.org\b",
            r"\bpythonhosted" + r"\.org\b",
            r"download\.pytorch" + r"\.org\b",
        )
    )
)
ALL = sources(*CODE_FOLDERS)
OWN = sources(PACKAGE)
PUBLIC_CODE = sources(PACKAGE, "recipes", "benchmarks")


def name_of(source: Source) -> str:
    """Return a file's place, the id of its test."""
    return source.place


@pytest.mark.parametrize("source", ALL, ids=name_of)
def test_sizes(source: Source) -> None:
    """A file is read in one sitting, a function on one screen."""
    found = []
    if len(source.lines) > FILE_LINES:
        found.append(
            f"{source.place} has {len(source.lines)} lines, at most {FILE_LINES}: split it where it has two subjects"
        )
    for node in source.functions():
        if (length := source.code_lines(node)) > FUNCTION_LINES:
            found.append(
                f"{source.place}:{node.lineno} {node.name} has {length} lines of code, at most {FUNCTION_LINES}"
            )
    assert not found, "\n".join(found)


@pytest.mark.parametrize("source", ALL, ids=name_of)
def test_names_are_nouns_of_the_field(source: Source) -> None:
    """What is called utils grows until nobody knows what is in it."""
    words = set(source.path.relative_to(REPOSITORY).with_suffix("").parts)
    assert not words & NAMES_THAT_SAY_NOTHING, f"{source.place}: name it after what it does in the field"


@pytest.mark.parametrize("source", sources(PACKAGE, "recipes"), ids=name_of)
def test_errors_are_raised_never_asserted(source: Source) -> None:
    """`python -O` removes an assert, and its message teaches nobody."""
    found = [f"{source.place}:{node.lineno}" for node in ast.walk(source.tree) if isinstance(node, ast.Assert)]
    assert not found, f"raise ValueError or TypeError with advice instead of assert: {found}"


def attribute_questions() -> Iterator[tuple[str, str, int]]:
    """Yield every call of hasattr and getattr in the package: its file, its text and its line."""
    for source in OWN:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"hasattr", "getattr"}:
                yield source.place, ast.unparse(node), node.lineno


def test_attributes_are_known_not_guessed() -> None:
    """A guess that fails is silent: the wrong branch runs."""
    found = [
        f"{place}:{line} {call}"
        for place, call, line in attribute_questions()
        if not {(place, call), (place, "*")} & set(MAY_ASK_FOR_ATTRIBUTES)
    ]
    assert not found, "let anatomy.py find it out, or use isinstance:\n" + "\n".join(found)


def test_every_exception_to_guessing_is_in_use() -> None:
    """An exception left over lets the next guess through unseen."""
    asked = {(place, text) for place, call, _ in attribute_questions() for text in (call, "*")}
    unused = set(MAY_ASK_FOR_ATTRIBUTES) - asked
    assert not unused, f"take {unused} off MAY_ASK_FOR_ATTRIBUTES"


@pytest.mark.parametrize("source", sources(f"{PACKAGE}/losses"), ids=name_of)
def test_losses_take_no_open_keywords(source: Source) -> None:
    """With **kwargs a misspelt keyword is swallowed, and the run trains on something else."""
    found = [
        f"{source.place}:{function.lineno} {node.name}.{function.name}"
        for node in source.classes()
        for function in node.body
        if isinstance(function, FunctionNode) and function.name in {"__init__", "forward"} and function.args.kwarg
    ]
    assert not found, f"spell out the keywords: {found}"


def undocumented(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    """Yield the public classes, functions and methods below a node that have no docstring."""
    for child in node.body:
        if not isinstance(child, ast.ClassDef | FunctionNode) or child.name.startswith("_"):
            continue
        decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in child.decorator_list}
        if ast.get_docstring(child) is None and not decorators & {"override", "overload", "setter"}:
            yield f"{prefix}:{child.lineno} {child.name}"
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, prefix)


@pytest.mark.parametrize("source", ALL, ids=name_of)
def test_every_file_says_what_it_is_for(source: Source) -> None:
    """The first line of a file is what a reader of the tree decides by."""
    assert ast.get_docstring(source.tree), (
        f"{source.place} has no docstring: say in one line what it does, and what not"
    )


@pytest.mark.parametrize("source", PUBLIC_CODE, ids=name_of)
def test_everything_public_is_documented(source: Source) -> None:
    """What has no docstring cannot be used without reading its body."""
    found = list(undocumented(source.tree, source.place))
    assert not found, "no docstring:\n" + "\n".join(found)


@pytest.mark.parametrize("source", sources("tests"), ids=name_of)
def test_every_test_gives_its_reason(source: Source) -> None:
    """A failing test that does not say why it is there is deleted, not repaired."""
    found = [
        f"{source.place}:{node.lineno} {node.name}"
        for node in source.functions()
        if node.name.startswith("test_") and ast.get_docstring(node) is None
    ]
    assert not found, "no reason given:\n" + "\n".join(found)


def test_nothing_names_the_machine_it_was_written_on() -> None:
    """A path of one machine works on that machine only, and an index's host is for the user to choose."""
    found = []
    for path in project_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        for number, line in enumerate(text.splitlines(), start=1):
            if match := NEVER_WRITTEN.search(line):
                found.append(f"{path.relative_to(REPOSITORY)}:{number} {match[0]}")
    assert not found, "\n".join(found)
