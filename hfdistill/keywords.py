"""Names and values that a person wrote, checked against what a function takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches

_PLAIN: dict[str, type | tuple[type, ...]] = {
    "bool": bool,
    "int": int,
    "float": (int, float),
    "str": str,
    "None": type(None),
}


def nearest(name: str, accepted: Iterable[str]) -> list[str]:
    """The accepted names, those most like `name` first."""
    names = list(accepted)
    close = get_close_matches(name, names, n=max(len(names), 1), cutoff=0.5)
    return close + [item for item in names if item not in close]


def check_keywords(owner: str, function: Callable[..., object], keywords: Mapping[str, object]) -> None:
    """Refuse keywords that `function` does not take, and plain values of another type than it declares.

    Without this a quoted "false" would count as true, and True as the number 1.

    Args:
        owner: whose keywords these are, for messages.
        function: a function or a class.
        keywords: name -> value.

    Raises:
        ValueError: an unknown keyword; the message lists the accepted ones, nearest first.
        TypeError: a value of another type than declared.
    """
    parameters = inspect.signature(function).parameters
    for name, value in keywords.items():
        if name not in parameters:
            raise ValueError(
                f"{owner} takes no {name!r}. Accepted, nearest first: {', '.join(nearest(name, parameters))}."
            )
        annotation = parameters[name].annotation
        declared = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        kinds = [kind.strip() for kind in declared.split("|")]
        if set(kinds) <= set(_PLAIN) and not any(is_plain(kind, value) for kind in kinds):
            raise TypeError(f"{owner} takes {name} as {' or '.join(kinds)}, got {value!r} ({type(value).__name__}).")


def is_plain(kind: str, value: object) -> bool:
    """Whether `value` may stand where `kind` ("bool", "int", "float", "str", "None") is declared; True is no int."""
    if isinstance(value, bool):
        return kind == "bool"
    return isinstance(value, _PLAIN[kind])
