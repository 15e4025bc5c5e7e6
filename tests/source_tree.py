"""The project's own source, parsed once, for the tests that keep the house rules. It runs none of what it reads."""

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = "hfdistill"
CODE_FOLDERS = (PACKAGE, "recipes", "tests", "benchmarks")
NOT_OURS = {".git", ".venv", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", "__pycache__", "htmlcov"}
NOT_OURS |= {"build", "dist", "outputs"}
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Import:
    """One imported module, in full, the name taken from it ("" if none), and where.

    `deferred` tells that only the call of a function runs the import.
    """

    module: str
    name: str
    line: int
    deferred: bool


@dataclass(frozen=True)
class Source:
    """One Python file of the project."""

    path: Path

    @property
    def place(self) -> str:
        """The path from the repository's root, for messages."""
        return self.path.relative_to(REPOSITORY).as_posix()

    @property
    def module(self) -> str:
        """The dotted name inside its top folder: `losses.base` for hfdistill/losses/base.py, "" for its __init__."""
        parts = self.path.relative_to(REPOSITORY).with_suffix("").parts[1:]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def lines(self) -> list[str]:
        """The file's lines."""
        return self.path.read_text(encoding="utf-8").splitlines()

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse("\n".join(self.lines), filename=self.place)

    @cached_property
    def imports(self) -> list[Import]:
        """Every import that can run, so none under `if TYPE_CHECKING:`."""
        return list(self._imports_below(self.tree, deferred=False))

    def functions(self) -> Iterator[FunctionNode]:
        """Every function and method, nested ones too."""
        return (node for node in ast.walk(self.tree) if isinstance(node, FunctionNode))

    def classes(self) -> Iterator[ast.ClassDef]:
        """Every class, nested ones too."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))

    def code_lines(self, node: FunctionNode) -> int:
        """How many lines of code a function has: neither blank, nor comment, nor docstring."""
        numbers = set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if ast.get_docstring(node) is not None:
            docstring = node.body[0]
            numbers -= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
        texts = (self.lines[number - 1].strip() for number in numbers)
        return sum(1 for text in texts if text and not text.startswith("#"))

    def _imports_below(self, node: ast.AST, deferred: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                # `if TYPE_CHECKING` never runs its body, `if not TYPE_CHECKING` always does.
                runs = child.body if isinstance(child.test, ast.UnaryOp) else child.orelse
                for statement in runs:
                    yield from self._imports_below(ast.Module([statement], []), deferred)
            elif isinstance(child, ast.Import):
                yield from (Import(alias.name, "", child.lineno, deferred) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield from self._imports_from(child, deferred)
            else:
                yield from self._imports_below(child, deferred or isinstance(child, FunctionNode | ast.Lambda))

    def _imports_from(self, node: ast.ImportFrom, deferred: bool) -> Iterator[Import]:
        package = list(self.path.relative_to(REPOSITORY).parent.parts)
        base = package[: len(package) - node.level + 1] if node.level else []
        origin = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            # `from hfdistill import functional` imports a module, `from hfdistill.functional import kl` a name of one.
            full = f"{origin}.{alias.name}"
            if is_module(full):
                yield Import(full, "", node.lineno, deferred)
            else:
                yield Import(origin, alias.name, node.lineno, deferred)


def is_module(dotted: str) -> bool:
    """Tell whether a dotted name is a file or a package of this repository."""
    path = REPOSITORY.joinpath(*dotted.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    """Return every Python file under the given top folders."""
    paths = (path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py")))
    return tuple(Source(path) for path in paths if not NOT_OURS & set(path.relative_to(REPOSITORY).parts))


def project_files() -> Iterator[Path]:
    """Every file of the project, of any kind, that a clone would hold."""
    for folder, folders, files in os.walk(REPOSITORY):
        folders[:] = [name for name in folders if name not in NOT_OURS and not name.endswith(".egg-info")]
        yield from (Path(folder, name) for name in sorted(files))
