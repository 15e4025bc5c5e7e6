"""The report's page as text: it needs nothing from outside, escapes what it shows, leaves out what is absent."""

from __future__ import annotations

import builtins
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from report.rich_report import hostile_report, rich_report, sparse_report

from hfdistill.report.contents import Report
from hfdistill.report.finding import finding
from hfdistill.report.page import as_html

VOID = {"meta", "link", "br", "img", "input", "hr", "path", "use", "circle", "rect"}


class Page(HTMLParser):
    """Reads a page: its elements with attributes, its headings, its text, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch(r"h\d", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
        if self.open and re.fullmatch(r"h\d", self.open[-1]):
            level, said = self.headings[-1]
            self.headings[-1] = (level, said + data)


@pytest.mark.parametrize("make", [rich_report, sparse_report, hostile_report])
def test_the_page_asks_for_nothing_from_outside(make: Any) -> None:
    """It is sent by mail and opened years later, without a network: everything must be in it."""
    html = as_html(make())
    page = Page(html)
    assert not page.open, f"not closed: {page.open}"
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed"), f"<{tag}> has no place in the page"
        assert not [name for name in attributes if name.startswith("on")], f"<{tag}> runs code: {attributes}"
        for name in ("src", "href", "srcset", "data"):
            target = attributes.get(name) or ""
            assert target.startswith(("#", "data:,")) or not target, f"<{tag} {name}={target!r}> leaves the page"
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert not [match for match in re.findall(r"url\(([^)]*)\)", html) if not match.startswith("#")]


def test_names_are_text_and_never_code() -> None:
    """Names of models and classes come from other people's repositories."""
    html = as_html(hostile_report())
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert '<script>alert("x")</script>' in Page(html).text


def test_every_section_stands_in_its_order_with_headings_without_gaps() -> None:
    """A reader finds a section by its place, and a screen reader by the level of its heading."""
    headings = Page(as_html(rich_report())).headings
    wanted = ["How good", "Score against latency", "What it costs", "Learning curves", "Calibration"]
    wanted += ["Which classes are confused", "How alike the layers are", "How it was measured", "What is missing"]
    assert [said for level, said in headings if level == 2] == wanted
    levels = [level for level, _ in headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_sections_without_data_are_left_out() -> None:
    """An empty plot would look like a result."""
    said = [text for level, text in Page(as_html(sparse_report())).headings if level == 2]
    assert said == ["How good", "What it costs", "How it was measured", "What is missing"]


def test_every_figure_says_its_message_to_those_who_do_not_see_it() -> None:
    """A plot without words is nothing to a screen reader, and in a printed page without colour."""
    figures = [attributes for tag, attributes in Page(as_html(rich_report())).elements if tag == "figure"]
    assert len(figures) == 1 + 6 + 6  # trade-off, six terms, six models
    assert all(re.search(r"\d", attributes.get("aria-label") or "") for attributes in figures)


def test_the_figures_of_a_page_share_no_ids() -> None:
    """Two drawings with one clip path under the same id would cut each other off."""
    ids = [attributes["id"] for _, attributes in Page(as_html(rich_report())).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    html = as_html(rich_report())
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    assert referred
    assert referred <= set(ids)


def test_the_same_report_gives_the_same_page() -> None:
    """Reports lie in version control; a change must mean that a figure changed."""
    assert as_html(rich_report()) == as_html(rich_report())


def test_colours_follow_the_page() -> None:
    """A placeholder colour that is left would be invisible in the dark."""
    html = as_html(rich_report())
    assert not re.findall(r"#0[147]0[258][0-9a-f]{2}", html)
    assert html.count("var(--series-2)") > 10


def test_numbers_are_those_of_the_report() -> None:
    """The page rounds, but it never says anything else than the report holds."""
    text = Page(as_html(rich_report())).text
    for shown in ("68.1 ± 0.4", "[67.2, 69.0]", "+2.6", "[+1.5, +3.7]", "1.2 M", "86 MFLOP", "3.28 ms", "305 rows/s"):
        assert shown in text, shown
    assert "compared" in text


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        ((0.026, 0.015, 0.037), "Distillation gains 2.6 points"),
        ((0.004, -0.006, 0.014), "is within what other evaluation rows would change"),
        ((-0.02, -0.03, -0.01), "without distillation is 2.0 points better"),
    ],
)
def test_the_finding_claims_no_more_than_the_interval_allows(
    difference: tuple[float, float, float], said: str
) -> None:
    """The first sentence is the one that is quoted."""
    report = rich_report()
    report.models[2] = replace(report.models[2], difference=difference)
    assert said in finding(report)


def test_the_finding_is_of_the_best_student() -> None:
    """Neither the teacher nor the control is what was distilled."""
    assert "kd 68.1 %" in finding(rich_report())
    assert "no distilled student" in finding(Report("t", "accuracy", rich_report().models[:2]))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is an extra; without it the message says what to install."""
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError("no matplotlib")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"hfdistill\[report\]"):
        as_html(rich_report())
