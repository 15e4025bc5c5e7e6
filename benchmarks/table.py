"""A benchmark's section as a Markdown table."""

import statistics

from benchmarks.rounds import Ratio
from benchmarks.section import Section

BASES = ("floor", "student", "naive")
"""Rows that others are set beside, where a section has them."""


def printed(section: Section) -> str:
    """The section as Markdown: each row's median, and its ratio over each base with the spread of the rounds."""
    bases = [base for base in BASES if base in section.seconds] or list(section.seconds)[:1]
    bases = section.settings.get("bases", bases)
    memory = bool(section.memory)
    heads = ["row", *(["seconds", "tokens/s"] if section.seconds else []), *(f"over {base}" for base in bases)]
    heads += ["MB"] if memory else []
    lines = [f"### {section.title}", "", described(section), ""]
    if section.seconds or memory:
        lines += ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    for name in section.seconds or section.memory:
        lines.append("| " + " | ".join([name, *cells(section, name, bases, memory)]) + " |")
    lines += ["", *(f"* {name}: {value:.4g}" for name, value in section.figures.items())]
    lines += [f"* {note}" for note in section.notes]
    return "\n".join(lines).rstrip() + "\n"


def cells(section: Section, name: str, bases: list[str], memory: bool) -> list[str]:
    """What stands beside a row's name."""
    found = []
    if samples := section.seconds.get(name):
        middle = statistics.median(samples)
        speed = section.tokens.get(name)
        found = [f"{middle:.3f}", "" if speed is None else f"{speed / statistics.mean(samples):,.0f}"]
    for base in bases if section.seconds else ():
        same = base in section.seconds and len(section.seconds[base]) == len(section.seconds[name])
        found.append(spread(section.over(name, base)) if same and name != base else "")
    if memory:
        found.append(f"{section.memory[name]:,.0f}" if name in section.memory else "")
    return found


def spread(ratio: Ratio | None) -> str:
    """A ratio of medians, and the smallest and largest of the rounds'."""
    return "" if ratio is None else f"{ratio.of_medians:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def described(section: Section) -> str:
    """The settings in a line."""
    given = {name: value for name, value in section.settings.items() if name != "bases"}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in given.items())
