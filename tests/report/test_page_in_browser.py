"""The report's page in a real browser: on a desktop and on a phone, in light and in dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report.browser import MISSING, Browser
from report.rich_report import hostile_report, rich_report, sparse_report

from hfdistill.report.page import as_html

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "there is a browser")

CONTRAST = """
const rgba = text => { const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  c.fillStyle = text; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data]; };
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = node => { for (; node; node = node.parentElement) {
  const c = rgba(getComputedStyle(node).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255]; };
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); const found = [];
while (walker.nextNode()) { const node = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
  const style = getComputedStyle(node); const ink = node.closest('svg') ? style.fill : style.color;
  const [a, b] = [light(rgba(ink)), light(behind(node))].sort((x, y) => y - x);
  found.push([(a + 0.05) / (b + 0.05), walker.currentNode.data.trim().slice(0, 40)]); }
found.sort((x, y) => x[0] - y[0]); return found;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of the module."""
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        running.value("return 1")
        running.requests()  # those of the browser's own first page
        yield running


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("make", [rich_report, sparse_report, hostile_report])
def test_the_page_is_whole_and_readable(make: Any, width: int, scheme: str, browser: Browser, tmp_path: Path) -> None:
    """Nothing on the console, no request, no sideways scrolling, and text that stands out from what is behind it."""
    path = tmp_path / "report.html"
    path.write_text(as_html(make()), encoding="utf-8")
    browser.open(path, width, scheme)
    assert browser.value("return document.documentElement.scrollWidth") <= width
    assert browser.console() == []
    assert [url for url in browser.requests() if url not in (path.as_uri(), "data:,")] == []
    weakest = browser.value(CONTRAST)
    assert len(weakest) > 10
    assert weakest[0][0] >= 4.5, f"too little contrast: {weakest[:3]}"


def test_dark_is_dark_and_light_is_light(browser: Browser, tmp_path: Path) -> None:
    """A page that ignored the scheme would pass every other test."""
    path = tmp_path / "report.html"
    path.write_text(as_html(sparse_report()), encoding="utf-8")
    seen = {}
    for scheme in ("light", "dark"):
        browser.open(path, 800, scheme)
        script = "return getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)"
        seen[scheme] = sum(browser.value(script))
    assert seen["dark"] < 150 < 600 < seen["light"]
