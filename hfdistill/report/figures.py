"""The plots of a report, each as one SVG that takes its colours from the page around it.

Matplotlib draws in placeholder colours; these are then replaced by CSS variables (`--ink`, `--grid`, `--series-0`), so
that one drawing is right in light and in dark. Text stays text. The same report gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfdistill.measurement import Latency
from hfdistill.report.contents import ModelReport, ReliabilityBin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""One per model, in the order of the report, so that no plot is read by colour alone; after 8 they begin again."""

_INK, _GRID = "#010203", "#040506"
_WIDTH, _HEIGHT = 4.4, 3.2  # inches of 72 px: small enough that text stays readable on a phone
_DASHES = ("-", "--", "-.", ":")


def series_variable(position: int) -> str:
    """The CSS variable with the colour of the model at this position; there are 8."""
    return f"--series-{position % len(MARKERS)}"


def latency_at(model: ModelReport, batch_size: int | None = None) -> Latency | None:
    """The model's latency under torch at a batch size, by default its smallest; None where it was not measured."""
    measured = [x for x in model.latencies if x.runtime == "torch" and batch_size in (None, x.batch_size)]
    return min(measured, key=lambda latency: latency.batch_size, default=None)


def trade_off(models: Sequence[ModelReport], metric: str) -> str:
    """Score against latency of one row, log scale, with the bootstrap interval; "" with fewer than two models.

    Raises:
        ImportError: matplotlib is not there.
    """
    points = [
        (position, model, latency, model.scores[metric])
        for position, model in enumerate(models)
        if (latency := latency_at(model)) is not None and metric in model.scores
    ]
    if len(points) < 2:
        return ""
    figure, axes = _canvas()
    for position, _, latency, score in points:
        x, y = latency.seconds * 1e3, score.mean * 100
        ends = None if score.low is None or score.high is None else _spread(score.mean, score.low, score.high)
        look: dict[str, Any] = {"fmt": MARKERS[position % 8], "color": _colour(position), "markersize": 8}
        axes.errorbar(x, y, yerr=ends, capsize=3, elinewidth=1.2, **look)
    axes.set_xscale("log")
    _plain_ticks(axes)
    low, high = (edge(latency.seconds * 1e3 for _, _, latency, _ in points) for edge in (min, max))
    axes.set_xlim(low / 1.4, high * 2.2)  # room for the names, which stand to the right of their points
    _name_points(axes, [(_short(m.name), x.seconds * 1e3, s.mean * 100) for _, m, x, s in points])
    axes.set_xlabel(f"milliseconds per batch of {points[0][2].batch_size}")
    axes.set_ylabel(f"{metric} %")
    return _svg(figure, "trade-off")


def learning_curve(term: str, curves: Mapping[int, tuple[Sequence[int], Sequence[float]]]) -> str:
    """One logged term of several models over the steps of training.

    Args:
        term: as it was logged, "loss/kd".
        curves: position of the model in the report -> steps and values.

    Raises:
        ImportError: matplotlib is not there.
    """
    figure, axes = _canvas(3.6, 2.4)
    for position, (steps, values) in curves.items():
        marker = MARKERS[position % 8] if len(steps) <= 30 else ""
        dash = _DASHES[position // 8 % len(_DASHES)] if marker else _DASHES[position % len(_DASHES)]
        axes.plot(steps, values, dash, color=_colour(position), linewidth=1.5, marker=marker, markersize=4)
    axes.set_xlabel("step")
    axes.set_title(term, fontsize=10, color=_INK, loc="left")
    return _svg(figure, f"curve-{term}")


def reliability(name: str, position: int, bins: Sequence[ReliabilityBin]) -> str:
    """Share of right answers against confidence, the area of a point by its rows; the diagonal is calibrated.

    Raises:
        ImportError: matplotlib is not there.
    """
    figure, axes = _canvas(2.8, 2.6)
    axes.plot([0, 1], [0, 1], "--", color=_INK, linewidth=1, alpha=0.6)
    filled = [entry for entry in bins if entry.rows]
    rows = sum(entry.rows for entry in filled)
    confidences, shares = [entry.confidence for entry in filled], [entry.accuracy for entry in filled]
    axes.plot(confidences, shares, "-", color=_colour(position), linewidth=1.2)
    areas = [16 + 120 * entry.rows / rows for entry in filled]
    axes.scatter(confidences, shares, s=areas, color=_colour(position), marker=MARKERS[position % 8], zorder=3)
    axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="confidence", ylabel="share right")
    axes.set_title(_short(name), fontsize=10, color=_INK, loc="left")
    return _svg(figure, f"reliability-{position}")


def _canvas(width: float = _WIDTH, height: float = _HEIGHT) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure  # not pyplot, which would choose a window system
    except ImportError as error:
        raise ImportError(
            "the report's page draws with matplotlib, which is not installed. pip install 'hfdistill[report]', or "
            "write the report as Markdown and JSON alone."
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Axes = figure.add_subplot()
    axes.grid(visible=True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=9, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_GRID)
    axes.xaxis.label.set(color=_INK, fontsize=9)
    axes.yaxis.label.set(color=_INK, fontsize=9)
    return figure, axes


def _name_points(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Each name to the right of its point, moved up as far as it takes to keep clear of the names beside it."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.06
    placed: list[tuple[float, float]] = []
    for name, x, y in sorted(points, key=lambda point: point[2]):
        height = y
        for other, taken in sorted(placed, key=lambda place: place[1]):
            if 1 / 1.5 < x / other < 1.5 and abs(height - taken) < gap:
                height = taken + gap
        placed.append((x, height))
        axes.annotate(
            name, (x, y), xytext=(x * 1.09, height), fontsize=9, color=_INK, va="center", annotation_clip=False
        )


def _plain_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element with the page's colours; `name` keeps its ids apart from other figures'."""
    from matplotlib import rc_context

    drawn = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}
    with rc_context(settings):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # inside HTML names of schemas say nothing
    text = re.sub(
        r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true" focusable="false">', text, count=1
    )
    text = text.replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+)px[^;\"]*", r"font: \1px system-ui, sans-serif", text)
    text = text.replace(_INK, "var(--ink)").replace(_GRID, "var(--grid)")
    for position in range(len(MARKERS)):
        text = text.replace(_colour(position), f"var({series_variable(position)})")
    slug = re.sub(r"\W+", "-", name)
    text = re.sub(r'id="([^"]+)"', rf'id="{slug}-\1"', text)  # axes_1, patch_2: the same in every figure
    return re.sub(r'(href="#|url\(#)([^")]+)', rf"\1{slug}-\2", text)


def _colour(position: int) -> str:
    return f"#0708{16 + position % len(MARKERS):02x}"


def _spread(mean: float, low: float, high: float) -> list[list[float]]:
    return [[max(0.0, mean - low) * 100], [max(0.0, high - mean) * 100]]


def _short(name: str) -> str:
    shown = name if len(name) <= 24 else f"{name[:23]}…"
    return shown.replace("$", r"\$")  # matplotlib would read it as a formula
