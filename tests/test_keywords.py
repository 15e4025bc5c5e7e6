"""Keywords from configuration files: unknown ones and other types are refused, with the accepted ones."""

from __future__ import annotations

from typing import Any

import pytest

from hfdistill.keywords import check_keywords, nearest
from hfdistill.layer_map import LayerMap


def function(switched: bool, number: int | None, share: float, layers: str | LayerMap) -> None:
    """Takes one keyword of each kind."""


@pytest.mark.parametrize(
    ("keyword", "accepted", "refused"),
    [
        ("switched", [True, False], ["false", 0, None]),
        ("number", [3, None], [2.0, True, "3"]),
        ("share", [1, 0.5], [True, "1"]),
        ("layers", [[(1, 2)], "uniform", 7], []),
    ],
)
def test_declared_types_are_checked(keyword: str, accepted: list[Any], refused: list[Any]) -> None:
    """Only plain types are: what else an annotation says is for the function itself to refuse."""

    def function(switched: bool, number: int | None, share: float, layers: str | LayerMap) -> None: ...

    for value in accepted:
        check_keywords("it", function, {keyword: value})
    for value in refused:
        with pytest.raises(TypeError, match=rf"it takes {keyword} as .*, got {value!r}"):
            check_keywords("it", function, {keyword: value})


def test_nearest_keeps_every_name() -> None:
    """The list is the whole list, only sorted."""
    assert nearest("mask", ["kd", "task", "hidden"]) == ["task", "kd", "hidden"]


def test_annotations_may_be_types_or_text() -> None:
    """A module without postponed annotations declares the same types."""

    def plain(number: int | None) -> None:
        """Its annotation is text."""

    plain.__annotations__["number"] = int | None
    check_keywords("it", plain, {"number": None})
    with pytest.raises(TypeError, match=r"it takes number as int or None, got '3'"):
        check_keywords("it", plain, {"number": "3"})


def test_unknown_keywords_list_the_accepted_ones_nearest_first() -> None:
    """The misspelt word is most often one letter from the right one."""
    with pytest.raises(ValueError, match=r"it takes no 'shar'. Accepted, nearest first: share, "):
        check_keywords("it", function, {"number": 3, "shar": 0.5})
