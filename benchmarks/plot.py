"""The page's plot: what each row costs over the floor, for each batch shape, as bars."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.section import Section

FILE = "speed.svg"
_WIDTH, _ROW, _MARGIN = 7.2, 0.24, 0.9  # inches
_COLOURS = {"floor": "#8a8f98", "student": "#8a8f98", "Trainer": "#8a8f98", "naive": "#b3562f"}
_OURS, _PEER = "#2f6fb3", "#b3562f"


def bars(section: Section) -> dict[str, float]:
    """Row -> its median over the floor's, in the order of the section."""
    found = {name: section.over(name, "floor") for name in section.seconds}
    return {name: ratio.of_medians for name, ratio in found.items() if ratio is not None}


def draw(sections: Mapping[str, Section], folder: Path) -> Path | None:
    """Write the plot; None where there is nothing to draw, or matplotlib is missing.

    Args:
        sections: by name; those of steps are drawn.
        folder: where it is written.
    """
    tables = {section.title: bars(section) for name, section in sections.items() if name.startswith("steps-")}
    tables = {title: found for title, found in tables.items() if found}
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        return None
    if not tables:
        return None
    heights = [len(found) for found in tables.values()]
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "hfdistill"}  # text stays text; same data, same bytes
    figure = Figure(figsize=(_WIDTH, _ROW * sum(heights) + _MARGIN * len(tables)), layout="constrained")
    grid: Any = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)
    for axes, (title, found) in zip(grid[:, 0], tables.items(), strict=True):
        names = list(found)[::-1]
        colours = [_COLOURS.get(name, _OURS) for name in names]
        drawn = axes.barh(names, [found[name] for name in names], color=colours)
        axes.bar_label(drawn, fmt="%.2f", padding=3)
        axes.axvline(1.0, color="#8a8f98", linewidth=1, linestyle="--")
        axes.set_title(f"{title}: seconds over the floor's", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
    path = folder / FILE
    figure.savefig(path, metadata={"Date": None})
    return path


def text_bars(section: Section, width: int = 40) -> str:
    """The same bars in text, for where no plot can be drawn.

    Args:
        section: of steps.
        width: of the longest bar, in characters.
    """
    found = bars(section)
    if not found:
        return ""
    longest, name_width = max(found.values()), max(map(len, found))
    lines = [
        f"{name:<{name_width}} {'█' * max(round(width * value / longest), 1)} {value:.2f}"
        for name, value in found.items()
    ]
    return "\n".join(["```", *lines, "```", ""])
