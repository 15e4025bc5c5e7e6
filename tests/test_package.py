"""The package as a user meets it: its version, its public names, and its types."""

import ast
import re
import tomllib
from importlib import import_module
from importlib.resources import files

import pytest
from source_tree import PACKAGE, REPOSITORY, sources

import hfdistill

NAMES = sorted(set(hfdistill.__all__) - {"__version__"})


def test_version_is_the_one_that_is_built() -> None:
    """The build reads the version out of the source as text: an expression there would build another, or none."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    built_from = (REPOSITORY / project["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "(\d+\.\d+\.\d+)"$', built_from, re.MULTILINE) == [hfdistill.__version__]


@pytest.mark.parametrize("name", NAMES)
def test_public_name_is_its_submodules(name: str) -> None:
    """A name that is promised but not there fails at the user's, on first use."""
    module = import_module(f"hfdistill.{hfdistill._SUBMODULE_OF[name]}")
    assert getattr(hfdistill, name) is vars(module)[name]


@pytest.mark.parametrize("name", NAMES)
def test_public_name_is_no_submodules_name(name: str) -> None:
    """Importing a submodule binds its name in the package: the public name would be one or the other, by chance."""
    taken = {source.module for source in sources(PACKAGE)}
    assert name not in taken, f"hfdistill.{name} is a module too: rename the module, a public name is for users"


def test_mypy_sees_the_same_names() -> None:
    """The lazy table and the TYPE_CHECKING block are two lists: only a test keeps them one."""
    (package,) = (source for source in sources(PACKAGE) if not source.module)
    typed = {
        alias.asname: (node.module or "").removeprefix("hfdistill.")
        for node in ast.walk(package.tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert typed == hfdistill._SUBMODULE_OF


def test_dir_lists_names_that_are_not_loaded_yet() -> None:
    """Completion in a shell reads dir()."""
    assert set(hfdistill.__all__) <= set(dir(hfdistill))


def test_unknown_name_is_an_attribute_error() -> None:
    """Hasattr and `from hfdistill import ...` rely on AttributeError, and the reader on being told what there is."""
    with pytest.raises(AttributeError, match=r"no public name 'DistilationTrainer'.*DistillationTrainer"):
        _ = hfdistill.DistilationTrainer  # type: ignore[attr-defined]


def test_types_are_shipped() -> None:
    """Without py.typed a user's mypy takes every public name for Any."""
    assert files("hfdistill").joinpath("py.typed").is_file()
