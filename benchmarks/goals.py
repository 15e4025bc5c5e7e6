"""What the project promises of its speed, and whether one run of the benchmarks shows it."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.epochs import CACHED, DYNAMIC, FIXED, LIVE
from benchmarks.imports import STATEMENTS
from benchmarks.peers import KINDS
from benchmarks.rounds import Ratio
from benchmarks.section import Section

Sections = Mapping[str, Section]
LIMITS = {"kd": 1.05, "hidden": 1.06, "tinybert": 1.10}
SHORT = (64, 128)


@dataclass(frozen=True)
class Goal:
    """One promise.

    Args:
        what: is compared with what.
        limit: that it keeps.
        measured: finds the figure; None where its section, or a row, is missing.
        at_least: the limit is a lower one.
    """

    what: str
    limit: float
    measured: Callable[[Sections], Ratio | float | None]
    at_least: bool = False

    def met(self, figure: Ratio | float) -> bool:
        """Whether a figure keeps the limit, without rounding."""
        value = figure.of_medians if isinstance(figure, Ratio) else figure
        return value >= self.limit if self.at_least else value <= self.limit


def over(name: str, row: str, base: str) -> Callable[[Sections], Ratio | None]:
    """The ratio of two rows of one section."""
    return lambda sections: sections[name].over(row, base) if name in sections else None


def of_figures(
    name: str, row: str, base: str, figures: Callable[[Section], Mapping[str, float]]
) -> Callable[[Sections], float | None]:
    """The ratio of two single figures of one section."""

    def found(sections: Sections) -> float | None:
        known = figures(sections[name]) if name in sections else {}
        return known[row] / known[base] if row in known and base in known else None

    return found


def import_seconds(sections: Sections) -> float | None:
    """Median processor seconds of `import hfdistill`."""
    return statistics.median(sections["imports"].seconds[STATEMENTS[0]]) if "imports" in sections else None


def epochs(row: str, base: str) -> Callable[[Sections], float | None]:
    """The ratio of two epochs."""
    return of_figures("epochs", row, base, lambda section: section.figures)


GOALS = (
    *(
        Goal(f"{name}, live in float32, {tokens} tokens, over the floor", limit, over(f"steps-{tokens}", row, "floor"))
        for tokens in SHORT
        for name, limit in LIMITS.items()
        for row in [f"{name} live"]
    ),
    Goal(
        "tinybert, bfloat16 teacher, 64 tokens, over the naive float32 loop",
        0.40,
        over("steps-64", "tinybert bf16", "naive"),
    ),
    Goal("tinybert, live in float32, 512 tokens, over the floor", 1.15, over("steps-512", "tinybert live", "floor")),
    Goal(
        "its peak memory over that of the naive loop",
        0.75,
        of_figures("memory-512", "tinybert live", "naive", lambda section: section.memory),
    ),
    *(
        Goal(
            f"{name}, second epoch with cache, 64 tokens, over a bare student step",
            1.10,
            over("steps-64", f"{name} cached", "student"),
        )
        for name in ("kd", "pkd")
    ),
    *(
        Goal(
            f"same {kind} losses and batches as TextBrewer, over its step",
            1.00,
            over("peers", f"hfdistill {kind}", f"TextBrewer {kind}"),
        )
        for kind in KINDS
    ),
    *(
        Goal(
            f"an epoch of SST-2-like lengths, {FIXED if base == FIXED else DYNAMIC}, over {row}",
            limit,
            epochs(base, row),
            True,
        )
        for base in (FIXED, DYNAMIC)
        for row, limit in ((LIVE, 3.0), (CACHED, 5.0))
    ),
    Goal(
        "KL over 128,000 classes, 4 x 512 tokens: peak memory over the plain implementation",
        0.25,
        of_figures("vocabulary", "chunked", "plain", lambda section: section.memory),
    ),
    Goal("processor seconds of `import hfdistill`", 0.05, import_seconds),
    Goal(
        "`from hfdistill import DistillationTrainer` over `from transformers import Trainer`",
        1.05,
        over("imports", STATEMENTS[2], STATEMENTS[1]),
    ),
)
"""In the order of the page."""


def verdicts(sections: Sections) -> list[tuple[Goal, Ratio | float | None]]:
    """Each goal with its figure; None where it was not measured.

    Args:
        sections: by name.
    """
    return [(goal, goal.measured(sections)) for goal in GOALS]


def goal_table(sections: Sections) -> str:
    """The goals as a Markdown table.

    Args:
        sections: by name.
    """
    lines = ["| what | goal | measured | rounds | met |", "|---|--:|--:|--:|---|"]
    for goal, figure in verdicts(sections):
        sign = "≥" if goal.at_least else "≤"
        lines.append(f"| {goal.what} | {sign} {goal.limit:.2f} | {' | '.join(shown(goal, figure))} |")
    return "\n".join(lines) + "\n"


def shown(goal: Goal, figure: Ratio | float | None) -> tuple[str, str, str]:
    """A figure, the spread of the rounds behind it, and whether it keeps its goal."""
    if figure is None:
        return "not measured", "", ""
    met = "yes" if goal.met(figure) else "**no**"
    if isinstance(figure, Ratio):
        return f"{figure.of_medians:.3f}", f"{figure.median:.2f} ({figure.low:.2f} to {figure.high:.2f})", met
    return f"{figure:.3f}", "", met
