"""What is made of the benchmarks' sections: one run of all of them, verdicts on the goals, pages and the plot."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import all as everything
from benchmarks import epochs, page
from benchmarks.bare import BARE
from benchmarks.goals import GOALS, Goal, goal_table
from benchmarks.machine import add_options, description
from benchmarks.plot import draw, text_bars
from benchmarks.section import Section, gathered
from benchmarks.steps import row_names
from benchmarks.trained import MODES, OBJECTIVES


def options() -> argparse.Namespace:
    """The options that all benchmarks share, at their defaults."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args([])


@pytest.mark.parametrize("quick", [True, False])
def test_every_section_can_be_started(quick: bool, tmp_path: Path) -> None:
    """A misspelt row, option or module would be found after twenty minutes otherwise."""
    plan = everything.QUICK if quick else everything.FULL
    known = {*BARE, "Trainer", *(f"{name} {mode}" for name in OBJECTIVES for mode in MODES)}
    given = options()
    given.quick, given.output = quick, tmp_path
    for name, (module, *words) in plan.items():
        rows = [word.removeprefix("--rows=") for word in words if word.startswith("--rows=")]
        assert {row for text in rows for row in row_names(text)} <= known, name
        if spec := importlib.util.find_spec(f"benchmarks.{module}"):
            text = Path(str(spec.origin)).read_text(encoding="utf-8")
            shared = set(vars(options()))
            assert all(f'"--{word[2:].split("=")[0]}"' in text or word[2:].split("=")[0] in shared for word in words)
        assert everything.command(name, given)[-1] == f"--output={tmp_path / name}.json"


def test_a_section_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of twenty minutes must not be lost to its last section; but it must not pass for whole either."""
    started: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        started.append(command[2])
        return subprocess.CompletedProcess(command, int(command[2] == "benchmarks.steps"), "", "out of luck")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit):
        everything.main(["--output", str(tmp_path), "--only", "steps-64,imports"])
    assert started == ["benchmarks.steps", "benchmarks.imports"]
    assert "out of luck" in capsys.readouterr().out


def sections() -> dict[str, Section]:
    """Sections of one round, with hand-made samples."""
    table = {"floor": [2.0], "student": [1.0], "naive": [4.0], "kd live": [2.1], "hidden live": [2.2]}
    own = {epochs.LIVE: 2.0, epochs.CACHED: 1.0, epochs.DYNAMIC: 6.0}
    machine = description(options())
    return {
        "steps-64": Section("A step", {"batch": 16}, table | {"kd cached": [1.2]}, machine=machine),
        "memory-512": Section("Memory", memory={"naive": 100.0, "tinybert live": 74.0}),
        "epochs": Section("Epoch", {"steps": 1}, {name: [value] for name, value in own.items()}, own, figures=own),
    }


def verdicts(found: Mapping[str, Section]) -> dict[str, str]:
    """What a goal is about -> the end of its line."""
    lines = goal_table(found).splitlines()[2:]
    return {goal.what: line.split("|", 3)[3].strip(" |") for goal, line in zip(GOALS, lines, strict=True)}


def test_goals_are_judged_by_the_figures_they_name() -> None:
    """A goal that reads another row would be met by chance."""
    found = verdicts(sections())
    assert found["kd, live in float32, 64 tokens, over the floor"] == "1.050 | 1.05 (1.05 to 1.05) | yes"
    assert found["hidden, live in float32, 64 tokens, over the floor"] == "1.100 | 1.10 (1.10 to 1.10) | **no**"
    assert found["tinybert, live in float32, 64 tokens, over the floor"] == "not measured"
    assert found["its peak memory over that of the naive loop"] == "0.740 |  | yes"
    second = "kd, second epoch with cache, 64 tokens, over a bare student step"
    assert found[second] == "1.200 | 1.20 (1.20 to 1.20) | **no**"
    dynamic = f"an epoch of SST-2-like lengths, {epochs.DYNAMIC}, over"
    assert found[f"{dynamic} {epochs.LIVE}"] == "3.000 |  | yes"
    assert found[f"{dynamic} {epochs.CACHED}"] == "6.000 |  | yes"
    assert not Goal("", 3.0, lambda _: None, at_least=True).met(2.9)
    assert not Goal("", 1.06, lambda _: None).met(1.061)


def test_a_section_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Every sample is kept, so that a figure can be looked into afterwards."""
    for name, section in sections().items():
        section.save(tmp_path / "new" / f"{name}.json")
    assert gathered((tmp_path / "new").glob("*.json")) == dict(sorted(sections().items()))


def test_a_page_gets_its_part_and_keeps_the_rest(tmp_path: Path) -> None:
    """The figures stand in pages that are otherwise written by hand."""
    for name, section in sections().items():
        section.save(tmp_path / f"{name}.json")
    long, short = tmp_path / "docs.md", tmp_path / "README.md"
    for path in (long, short):
        path.write_text(f"# Own\n{page.BEGIN}\nold\n{page.END}\nafter\n", encoding="utf-8")
    page.main([str(tmp_path), "--markdown", str(long), "--short", str(short)])
    for path in (long, short):
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# Own\n{page.BEGIN}\n")
        assert text.endswith(f"\n{page.END}\nafter\n")
        assert "old" not in text
        assert "| 0.740 |" in text
    assert "### A step" in long.read_text(encoding="utf-8")
    assert "### A step" not in short.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="needs one"):
        page.placed("# A page without comments\n", "figures")


def test_the_plot_is_the_same_each_time(tmp_path: Path) -> None:
    """A plot that changed with the clock would be a change in every commit."""
    pytest.importorskip("matplotlib")
    first = draw(sections(), tmp_path)
    assert first is not None
    drawn = first.read_bytes()
    assert draw(sections(), tmp_path) == first
    assert first.read_bytes() == drawn
    assert b">kd live<" in drawn
    assert "kd live" in text_bars(sections()["steps-64"])
