"""What comparisons of runs found: how far apart they ended, and how far they may; as text, Markdown, JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from hfdistill.checks.findings import Finding, Findings


@dataclass(frozen=True)
class Difference:
    """How far apart two runs ended that must be the same run.

    Args:
        name: what differs between them by intent ("accumulation").
        compared: the two runs, in words.
        weights: largest difference of a weight after the last step, over the largest update that a weight of the same
            part (student, or trainable parts of the objective) got in all steps.
        loss: largest difference of the loss curves, over the largest loss.
        weight_difference: the largest difference of a weight itself.
        update: the largest update that a weight got.
        term: the entry of the log that differs most; "" where none does.
        tolerance: what `largest` may be; None where nothing can be asked, as `note` says.
        note: under which conditions the runs were made, and what it means.
        advice: what to do where it does not hold.
        skipped: why the comparison was not made; "" where it was.
        failed: the error that one of the runs ended with; "" where none did.
    """

    name: str
    compared: str = ""
    weights: float = 0.0
    loss: float = 0.0
    weight_difference: float = 0.0
    update: float = 0.0
    term: str = ""
    tolerance: float | None = None
    note: str = ""
    advice: str = ""
    skipped: str = ""
    failed: str = ""

    @property
    def largest(self) -> float:
        """The larger of the two relative differences."""
        return max(self.weights, self.loss)

    @property
    def holds(self) -> bool | None:
        """Whether the runs are the same as far as can be asked; None where nothing can be."""
        if self.failed:
            return False
        return None if self.skipped or self.tolerance is None else self.largest <= self.tolerance

    @property
    def verdict(self) -> str:
        """The answer in a word."""
        if self.skipped or self.failed:
            return "skipped" if self.skipped else "failed"
        return {True: "holds", False: "DIFFERS", None: "differs"}[self.holds]

    def finding(self) -> Finding:
        """The same as a finding of a check."""
        figures = {**asdict(self), "largest": self.largest, "holds": self.holds}
        if self.skipped:
            return Finding(self.name, "note", f"not compared: {self.skipped}", figures=figures)
        if self.failed:
            message = f"could not be compared, since a run failed: {self.failed}"
            return Finding(self.name, "error", message, self.advice or "Mend what the message says.", figures)
        message = f"{self.compared}: weights {self.weights:.1e}, loss {self.loss:.1e} apart"
        message += "" if self.tolerance is None else f", tolerance {self.tolerance:.0e}"
        message += f" ({self.note})." if self.note else "."
        if self.holds is not False:
            return Finding(self.name, "note" if self.holds is None else "ok", message, figures=figures)
        message += f" Of the log {self.term} differs most." if self.term else ""
        return Finding(self.name, "error", message, self.advice, figures)


class Differences(list[Difference]):
    """What all comparisons found, in the order in which they were made."""

    @property
    def holds(self) -> bool:
        """Whether no comparison failed; those that were skipped do not count."""
        return all(difference.holds is not False for difference in self)

    def findings(self) -> Findings:
        """The same as findings of checks, which have levels and advice."""
        return Findings(difference.finding() for difference in self)

    def markdown(self) -> str:
        """A table with a row per comparison, and below it why some were skipped or differ."""
        rows = (f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in self._cells())
        return "\n".join(["| " + " | ".join(_HEADINGS) + " |", "| --- | --- | ---: | ---: | ---: | --- |", *rows])

    def as_json(self) -> str:
        """JSON: whether all hold, and every comparison with its figures."""
        rows = [{name: _plain(value) for name, value in finding.figures.items()} for finding in self.findings()]
        return json.dumps({"holds": self.holds, "comparisons": rows}, indent=2, allow_nan=False)

    def __str__(self) -> str:
        table = [list(_HEADINGS), *self._cells()]
        widths = [max(len(row[column]) for row in table) for column in range(len(_HEADINGS))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        told = [f"{one.check}: {one}" for one in self.findings() if one.level == "error"]
        return "\n".join([*lines, *told])

    def _cells(self) -> list[list[str]]:
        return [
            [one.name, one.skipped or one.failed, "", "", "", one.verdict]
            if one.skipped or one.failed
            else [
                one.name,
                f"{one.compared} ({one.note})" if one.note else one.compared,
                f"{one.weights:.1e}",
                f"{one.loss:.1e}",
                "" if one.tolerance is None else f"{one.tolerance:.0e}",
                one.verdict,
            ]
            for one in self
        ]


def _plain(value: Any) -> Any:
    """JSON knows no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


_HEADINGS = ("comparison", "of what", "weights", "loss", "tolerance", "verdict")
