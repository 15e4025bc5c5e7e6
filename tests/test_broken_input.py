"""Broken configurations and inputs: none trains in silence, and each message says what came and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from broken_input import Case
from broken_input.recipes import COMPARISONS, FOLDERS, RECIPES
from broken_input.runs import ARGUMENTS, MODELS, OBJECTIVES, ROWS

CASES = (*ARGUMENTS, *OBJECTIVES, *ROWS, *MODELS, *RECIPES, *COMPARISONS, *FOLDERS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_broken_is_refused_with_what_to_do(case: Case, tmp_path: Path) -> None:
    """A run that goes on from a wrong input costs days and ends in a student that nobody can explain."""
    with pytest.raises(case.error) as caught:
        case.act(tmp_path)
    assert re.search(case.said, str(caught.value), re.DOTALL), str(caught.value)


def test_every_case_is_another() -> None:
    """Forty are asked for; the same one under two names would not count."""
    assert len({case.name for case in CASES}) == len({case.said for case in CASES}) == len(CASES) >= 40
