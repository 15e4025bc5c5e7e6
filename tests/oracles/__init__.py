"""What each oracle of the golden file is in the package: one module per kind of knowledge, each with its ORACLES.

An oracle calls the package's own functions and computes nothing that the package has a function for. Arguments carry
the file's own names: a case may leave out whatever has a default.
"""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

ORACLES: dict[str, Callable[..., Any]] = {
    name: oracle
    for module in iter_modules(__path__)
    for name, oracle in import_module(f"{__name__}.{module.name}").ORACLES.items()
}
