"""The result of one benchmark: the samples of its rows, and what they were taken under."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rounds import Ratio, ratio


@dataclass
class Section:
    """One table.

    Args:
        title: what was measured.
        settings: sizes, batch, tokens, and whatever else a reader must know.
        seconds: row -> seconds of each round.
        tokens: row -> tokens of one step, padding included, as a mean over the steps.
        memory: row -> MB at the peak.
        figures: other numbers, by what they are.
        notes: sentences for the page.
        machine: see machine.description.
    """

    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)

    def over(self, row: str, base: str) -> Ratio | None:
        """A row over another of the same rounds; None where either was not measured."""
        if row not in self.seconds or base not in self.seconds:
            return None
        return ratio(self.seconds[row], self.seconds[base])

    def save(self, path: Path | None) -> None:
        """Write it as JSON; None: nowhere."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Section":
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def gathered(paths: Iterable[Path]) -> dict[str, Section]:
    """Sections by the names of their files, without the ending."""
    return {path.stem: Section.load(path) for path in sorted(paths)}
