"""The arms, seeds and rows of a comparison, refused where they cannot each be a run of their own.

An arm and its seeds become folders, so that an arm's name is checked as a folder's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from hfdistill.keywords import is_plain
from hfdistill.names import check_folder_names, shown
from hfdistill.objective import Objective
from hfdistill.report.results import CONTROL


def check_runs(arms: Sequence[Any], seeds: Sequence[Any]) -> None:
    """Refuse arms and seeds of which each cannot have a run, and a folder, of its own.

    Args:
        arms: their names.
        seeds: of every arm.

    Raises:
        ValueError: none, one of them twice, or one that cannot be a folder's name or a seed.
        TypeError: a name that is no text.
    """
    if not arms or not seeds:
        raise ValueError(f"a comparison needs an arm and a seed, got arms {list(arms)} and seeds {list(seeds)}.")
    check_folder_names(arms, "arm")
    if "teacher" in arms:
        raise ValueError("no arm can be called 'teacher': the teacher has that row and folder itself. Rename it.")
    wrong = [
        seed for seed in seeds if not is_plain("int", seed) or not 0 <= seed < 2**32 or list(seeds).count(seed) > 1
    ]
    if wrong:
        raise ValueError(
            f"seeds must be different whole numbers from 0 to 2**32 - 1, got {list(seeds)}: a run with the seed "
            f"{wrong[0]!r} cannot be made, or would be another's."
        )


def check_evaluation(evaluation: Mapping[str, Dataset]) -> None:
    """Refuse splits on which nothing could be measured.

    Raises:
        ValueError: no split, or one without rows or labels.
    """
    held = {split: (len(rows), rows.column_names) for split, rows in evaluation.items()}
    if not held or any(not rows or "labels" not in columns for rows, columns in held.values()):
        raise ValueError(
            f"a comparison needs evaluation={{split: rows}}, each with rows and a column 'labels', got {held}. "
            "Nothing could be measured; name the right split, and rename the label's column."
        )


def check_arms(arms: Mapping[str, Any], seeds: Sequence[int]) -> None:
    """Refuse arms that cannot be compared.

    Args:
        arms: name -> objective.
        seeds: of every arm.

    Raises:
        ValueError: see check_runs; the control with an objective; an objective that is an object, whose projectors one
            run would hand to the next.
        TypeError: see check_runs.
    """
    check_runs(list(arms), seeds)
    if arms.get(CONTROL) is not None:
        raise ValueError(
            f"the arm {CONTROL!r} is the student trained on the labels alone, and was given an objective, which would "
            f"not be learnt: {shown(arms[CONTROL])}. Give that arm another name, and {CONTROL!r} None."
        )
    shared = [name for name, objective in arms.items() if isinstance(objective, Objective)]
    if shared:
        raise ValueError(
            f"the arms {shared} are given as Objective objects, whose trained projectors would pass from one seed "
            "to the next. Give a preset's name or a mapping; each run then builds its own."
        )
