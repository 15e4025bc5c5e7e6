"""The page of speed out of a benchmark's folder, and sections of other pages.

    python -m benchmarks.page FOLDER [--markdown docs/speed.md] [--short README.md]

Between the comments <!-- benchmark --> and <!-- /benchmark --> of a file, --markdown puts everything (with the plot
beside it), --short the goals alone. What stands around them stays.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import epochs, precision, scaling
from benchmarks.goals import goal_table
from benchmarks.plot import FILE, draw, text_bars
from benchmarks.section import Section, gathered
from benchmarks.table import printed

BEGIN, END = "<!-- benchmark -->", "<!-- /benchmark -->"
PAGE = "speed.md"
TABLES = {"epochs": epochs.table, "scaling": scaling.table, "precision": precision.table}
"""Benchmarks whose tables are their own."""


def machine_line(sections: Mapping[str, Section]) -> str:
    """On what it was measured, in a sentence."""
    facts = next((section.machine for section in sections.values() if section.machine), {})
    if not facts:
        return ""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    place = facts.get("gpu") or f"{facts['threads']} of {facts['cores']} cores of {facts['cpu']}"
    return (
        f"Measured on {place} ({facts['capability']}), float32 products in precision {facts['matmul']!r}; {versions}."
    )


def body(sections: Mapping[str, Section], plot: bool) -> str:
    """All of a run: goals, plot, tables.

    Args:
        sections: by name.
        plot: there is one beside the page.
    """
    parts = [machine_line(sections), goal_table(sections)]
    if plot:
        parts.append(f"![Each step over the floor]({FILE})")
    for name, section in sections.items():
        parts.append(TABLES.get(name.partition("-")[0], printed)(section))
        if name.startswith("steps-") and not plot:
            parts.append(text_bars(section))
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def placed(text: str, part: str) -> str:
    """A page with this part between its two comments.

    Args:
        text: of the page.
        part: what is to stand there.

    Raises:
        ValueError: the page has not exactly one of each comment, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(
            f"a page needs one {BEGIN} and, after it, one {END}, each in a line of its own; between them the figures "
            "are put, so that nothing else is overwritten."
        )
    return f"{before}{BEGIN}\n{part.strip()}\n{END}{after}"


def write(sections: Mapping[str, Section], folder: Path) -> str:
    """Write a folder's own page and plot, and return the page.

    Args:
        sections: by name.
        folder: where.
    """
    text = body(sections, draw(sections, folder) is not None)
    (folder / PAGE).write_text(f"# Speed\n\n{BEGIN}\n{text}{END}\n", encoding="utf-8")
    return text


def main(words: Sequence[str] | None = None) -> None:
    """Write the page of a folder, and parts of it into others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what benchmarks.all wrote")
    parser.add_argument("--markdown", type=Path, help="a page that gets all of it")
    parser.add_argument("--short", type=Path, help="a page that gets the goals")
    options = parser.parse_args(words)
    sections = gathered(options.folder.glob("*.json"))
    write(sections, options.folder)
    if options.markdown:
        plot = draw(sections, options.markdown.parent) is not None
        replace(options.markdown, body(sections, plot))
    if options.short:
        replace(options.short, f"{machine_line(sections)}\n\n{goal_table(sections)}")


def replace(path: Path, part: str) -> None:
    """Put a part into a page.

    Args:
        path: of the page.
        part: see placed.
    """
    path.write_text(placed(path.read_text(encoding="utf-8"), part), encoding="utf-8")


if __name__ == "__main__":
    main()
