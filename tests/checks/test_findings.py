"""What a check found, as an object, in the log, as text, Markdown and JSON."""

import json
import logging

import pytest

from hfdistill import Finding, Findings

FOUND = Findings(
    [
        Finding("batch size", "note", "8 rows per update."),
        Finding("memory", "ok", "enough."),
        Finding("terms", "warning", "a|b drowns.", "Lower its weight.", {"norm": float("nan"), "pair": (1, 2)}),
    ]
)


def test_the_worst_level_decides():
    """The exit code of the command line hangs on it; nothing found is no fault."""
    assert FOUND.worst == "warning"
    assert Findings().worst == "ok"
    assert [finding.check for finding in FOUND.at_least("note")] == ["batch size", "terms"]
    assert Findings([*FOUND, Finding("x", "error", "no.", "Mend it.")]).worst == "error"


@pytest.mark.parametrize("level", ["warning", "error"])
def test_whoever_complains_says_what_to_do(level: str):
    """A warning without advice is read once and then switched off."""
    with pytest.raises(ValueError, match="advice"):
        Finding("terms", level, "it is bad.")


def test_an_unknown_level_is_refused():
    """A misspelt level would be neither shown nor counted."""
    with pytest.raises(ValueError, match="'fatal'"):
        Finding("terms", "fatal", "it is bad.", "Mend it.")


def test_json_can_be_read_back():
    """NaN is what a check may well find, and strict JSON readers refuse it; tuples become lists."""
    read = json.loads(FOUND.as_json(), parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert read["worst"] == "warning"
    assert [finding["check"] for finding in read["findings"]] == ["batch size", "memory", "terms"]
    assert read["findings"][2]["figures"] == {"norm": "nan", "pair": [1, 2]}


def test_text_and_markdown_hold_message_and_advice():
    """Whoever reads either must know what to do; a bar in a message must not end the cell."""
    assert "a|b drowns. Lower its weight." in str(FOUND)
    assert len(str(FOUND).splitlines()) == 3
    assert "a\\|b drowns. Lower its weight." in FOUND.markdown()
    assert FOUND.markdown().splitlines()[1] == "| --- | --- | --- |"


def test_the_log_has_levels(caplog: pytest.LogCaptureFixture):
    """Python shows warnings by default and notes on demand."""
    with caplog.at_level(logging.DEBUG, logger="hfdistill"):
        FOUND.log()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "batch size: 8 rows per update."),
        ("DEBUG", "memory: enough."),
        ("WARNING", "terms: a|b drowns. Lower its weight."),
    ]
