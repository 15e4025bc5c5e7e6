"""The page of methods: complete, current, and with evidence that exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from source_tree import REPOSITORY

from hfdistill.losses import CATALOGUE, DistillationLoss
from hfdistill.losses.method import Method, Paper
from hfdistill.methods import as_markdown, as_text, knowledge
from hfdistill.presets import PRESETS


def method_of(kind: type[DistillationLoss]) -> Method:
    """The facts of a loss, which must be there."""
    assert kind.method is not None, f"{kind.__name__} says nothing of its papers: give it method = Method(...)"
    return kind.method


def test_the_page_in_the_docs_is_the_generated_one() -> None:
    """A page that is edited by hand, or not written anew, says something else than the code."""
    page = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == as_markdown(), "run `make methods`"


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_loss_says_where_it_is_from(name: str) -> None:
    """Without a paper a user cannot judge it, and without evidence he cannot trust it."""
    method = method_of(CATALOGUE[name])
    assert bool(method.papers) == (knowledge(CATALOGUE[name]) != "labels")
    for paper in method.papers:
        assert paper.link.startswith("https://")
        assert 1980 < paper.year < 2030
        assert paper.authors
        assert len(paper.title) > 5
    assert method.evidence or method.unverified
    for phrase in (*method.restrictions, method.unverified):
        assert not phrase.endswith("."), f"{phrase!r} is joined with others: leave the full stop out"


@pytest.mark.data
def test_golden_evidence_exists(shared: Path) -> None:
    """An id that no case bears is no evidence. Phrases with spaces name other evidence."""
    cases = json.loads((shared / "methods" / "golden.json").read_text(encoding="utf-8"))["cases"]
    known = {case["id"] for case in cases}
    named = {word for kind in CATALOGUE.values() for word in method_of(kind).evidence if " " not in word}
    assert named
    assert not named - known


@pytest.mark.data
def test_every_golden_case_is_evidence_of_something(shared: Path) -> None:
    """A value that no loss is held to was worked out for nothing; layer maps and few-sample recovery are no losses."""
    cases = json.loads((shared / "methods" / "golden.json").read_text(encoding="utf-8"))["cases"]
    named = {word for kind in CATALOGUE.values() for word in method_of(kind).evidence}
    beside = ("map/", "hand/", "fskd", "unix/", "mgd/loss", "mgd/margin")  # transformers have no margin before a ReLU
    others = {case["id"] for case in cases if case["id"].startswith(beside)}
    assert not {case["id"] for case in cases} - others - named


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_cites_its_paper(name: str) -> None:
    """The page takes the citation from the docstring."""
    row = next(line for line in as_markdown().splitlines() if line.startswith(f"| `{name}` |"))
    assert "https://" in row
    assert re.search(r"\b(19|20)\d\d\b", row)


def test_the_readme_counts_and_names_them() -> None:
    """It is the first page that a user reads, and the one that is forgotten."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f"{len(CATALOGUE)} losses and {len(PRESETS)} presets" in text
    assert not [name for name in PRESETS if f"`{name}`" not in text]


def test_both_forms_list_everything() -> None:
    """The terminal and the page are of one catalogue."""
    text, page = as_text(), as_markdown()
    for name, kind in CATALOGUE.items():
        assert f"\n  {name} ({knowledge(kind)})" in text
        assert f"#### `{name}`" in page
    for name in PRESETS:
        assert f"\n  {name}(" in text


def test_facts_are_plain_values() -> None:
    """They are shared by all instances of a class."""
    assert Method((Paper("A", 2000, "T", "https://x"),)) == Method((Paper("A", 2000, "T", "https://x"),))
    assert hash(Method()) == hash(Method())
