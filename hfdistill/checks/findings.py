"""What a check found: a level, a message, what to do, and the figures behind it; as text, Markdown and JSON."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

logger = logging.getLogger(__name__)

Level = Literal["ok", "note", "warning", "error"]
"""ok: looked at and sound. note: worth knowing. warning: the run would go, probably not as meant. error: it fails, or
teaches nonsense."""

LEVELS: tuple[Level, ...] = get_args(Level)
_LOGGED = {"ok": logging.DEBUG, "note": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Args:
        check: what was looked at, in a word or two ("label order").
        level: how bad it is.
        message: one or two sentences, with the number that they rest on.
        advice: what to do; a warning or an error must have it.
        figures: the numbers, by name, for programs.

    Raises:
        ValueError: an unknown level, or a warning or an error without advice.
    """

    check: str
    level: Level
    message: str
    advice: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(map(repr, LEVELS))}, got {self.level!r}.")
        if self.level in ("warning", "error") and not self.advice:
            raise ValueError(f"the {self.level} {self.message!r} says nothing of what to do. Give it advice=...")

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".rstrip()


class Findings(list[Finding]):
    """What all checks of a run found, in the order in which they were made."""

    @property
    def worst(self) -> Level:
        """The worst level among them; "ok" where nothing was found."""
        return max((finding.level for finding in self), key=LEVELS.index, default="ok")

    def at_least(self, level: Level) -> Findings:
        """Those of this level and of worse ones."""
        return Findings(one for one in self if LEVELS.index(one.level) >= LEVELS.index(level))

    def log(self) -> None:
        """Write each to the log, under the level of logging that its own stands for."""
        for finding in self:
            logger.log(_LOGGED[finding.level], "%s: %s", finding.check, finding)

    def __str__(self) -> str:
        width = max((len(finding.check) for finding in self), default=0)
        return "\n".join(f"{finding.level:<7}  {finding.check:<{width}}  {finding}" for finding in self)

    def markdown(self) -> str:
        """A table of level, check and message with its advice."""
        cells = ([finding.level, finding.check, str(finding)] for finding in self)
        rows = ("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in cells)
        return "\n".join(["| level | check | finding |", "| --- | --- | --- |", *rows])

    def as_json(self) -> str:
        """JSON: the worst level, and every finding with its figures; what is not finite is written as a word."""
        content = {"worst": self.worst, "findings": [_plain(asdict(finding)) for finding in self]}
        return json.dumps(content, indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: JSON knows neither NaN nor infinity, nor the numbers of numpy and torch."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | bool | int | float | None) else str(value)
