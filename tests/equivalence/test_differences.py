"""How far apart two runs ended: measured against what was learnt, and said in text, Markdown, JSON and findings."""

import json
import math

import pytest
import torch

from hfdistill.equivalence.differences import Difference, Differences
from hfdistill.equivalence.short_runs import Beginning, NotComparableError, Outcome, difference

BEGINNING = Beginning(
    {"student.w": torch.zeros(2), "student.count": torch.zeros(1), "objective.p": torch.zeros(1)}, ()
)
TRAINED = Beginning(BEGINNING.weights, {"student.w", "objective.p"})


def outcome(student: float, projector: float = 8.0, count: float = 1.0, loss: float = 1.0) -> Outcome:
    """A run that ended with these weights."""
    weights = {"student.w": [1.0, student], "student.count": [count], "objective.p": [projector]}
    log = [{"loss": 4.0, "loss/kd": 2.0}, {"loss": loss, "loss/kd": 2.0 * loss}]
    return Outcome({name: torch.tensor(value) for name, value in weights.items()}, log)


def test_a_difference_is_measured_against_the_updates_of_its_own_part() -> None:
    """Projectors move much further than the student: against them its errors would look small."""
    found = difference("x", outcome(2.0), outcome(2.5), TRAINED)
    assert (found.weights, found.weight_difference, found.update) == (0.25, 0.5, 8.0)
    assert difference("x", outcome(2.0), outcome(2.0, projector=12.0), TRAINED).weights == 0.5
    assert (found.loss, found.term) == (0.0, "")


def test_buffers_count_where_runs_must_be_the_same_bit_by_bit() -> None:
    """A memory bank that is not restored shows in the weights only later."""
    one, other = outcome(2.0), outcome(2.0, count=3.0)
    assert difference("x", one, other, TRAINED).weights == 0.0
    assert difference("x", one, other, TRAINED, exact=True).weights > 0.0


def test_the_entry_of_the_log_that_differs_most_is_named() -> None:
    """It says which term to look at."""
    found = difference("x", outcome(2.0), outcome(2.0, loss=3.0), TRAINED)
    assert (found.loss, found.term, found.largest) == (0.5, "loss/kd", 2.0 / 4.0)


@pytest.mark.parametrize("broken", [outcome(math.nan), outcome(2.0, loss=math.nan), Outcome(outcome(2.0).weights, [])])
def test_what_is_no_number_never_passes(broken: Outcome) -> None:
    """No comparison with NaN is true, so that a careless one would let it through; nor do logs of unlike length."""
    for pair in ((outcome(2.0), broken), (broken, outcome(2.0))):
        if pair[0].log:
            assert difference("x", *pair, TRAINED).largest == math.inf


def test_runs_in_which_nothing_is_learnt_are_not_compared() -> None:
    """They agree, whatever is broken."""
    still = Outcome(BEGINNING.weights, outcome(0.0).log)
    with pytest.raises(NotComparableError, match="no weight changed"):
        difference("x", still, still, TRAINED)


def test_text_table_json_and_findings_say_the_same() -> None:
    """A person reads a table, a program JSON, and the doctor findings."""
    rows = Differences(
        [
            Difference("repeat", "4 steps twice", update=0.1, tolerance=0.0),
            Difference("accumulation", "8 x 1 | 4 x 2", math.inf, 0.25, 0.05, 0.1, "loss/kd", 1e-3, "SGD", "Count."),
            Difference("attention", skipped="only eager"),
            Difference("processes", failed="RuntimeError: no port", advice="Free one."),
            Difference("again", "4 steps", 0.125, note="this device rounds as it likes"),
        ]
    )
    assert not rows.holds
    assert Differences(rows[:1] + rows[2:3] + rows[4:]).holds
    assert [finding.level for finding in rows.findings()] == ["ok", "error", "note", "error", "note"]
    held = json.loads(rows.as_json())
    assert held["holds"] is False
    assert [row["holds"] for row in held["comparisons"]] == [True, False, None, False, None]
    assert held["comparisons"][1]["largest"] == "inf"
    text, table = str(rows), rows.markdown()
    for said in ("inf", "2.5e-01", "1e-03", "DIFFERS", "holds", "only eager", "RuntimeError: no port", "rounds"):
        assert said in text
        assert said in table
    assert "Of the log loss/kd differs most. Count." in text
    assert all(line.count("|") == 7 for line in table.splitlines())
