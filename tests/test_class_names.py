"""Classes of the data and of the teacher: what passes, and what every refusal says."""

from __future__ import annotations

import pytest

from hfdistill.anatomy import Anatomy
from hfdistill.class_names import check_class_names


def teacher(*names: str) -> Anatomy:
    """The anatomy of a classifier with these classes."""
    return Anatomy("vit", 2, 16, 2, attention="interface", classes=len(names), label_names=dict(enumerate(names)))


@pytest.mark.parametrize(
    ("data", "theirs"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["cat", "guide dog"], ["Cat", "guide_dog"]),
        (["cat", "dog"], ["LABEL_0", "LABEL_1"]),
        (["0", "1"], ["negative", "positive"]),
        ([], ["LABEL_0"]),
    ],
)
def test_the_same_classes_pass(data: list[str], theirs: list[str]):
    """Spelling is no difference, and a name that is only a number says nothing; a regression has no classes."""
    check_class_names(data, teacher(*theirs))


@pytest.mark.parametrize(
    ("data", "theirs", "said"),
    [
        (["a", "b", "c"], ["a", "b"], r"the data has 3 classes \('a', 'b', 'c'\), the teacher 2"),
        ([], ["a", "b"], r"1 classes \(a regression\), the teacher 2"),
        (["a", "b"], ["b", "a"], r"another order.*label_order=\['b', 'a'\].*\{'b': 0, 'a': 1\}"),
        (["Big dog", "cat"], ["cat", "big-dog"], r"label_order=\['cat', 'Big dog'\]"),
        (["cat", "dog"], ["ship", "truck"], r"differently: 'cat', 'dog' \(data\), 'ship', 'truck'.*same_label_order"),
    ],
)
def test_other_classes_are_refused(data: list[str], theirs: list[str], said: str):
    """Training would run without an error, and every class would be learnt from a wrong one."""
    with pytest.raises(ValueError, match=said):
        check_class_names(data, teacher(*theirs))


def test_who_knows_better_is_believed_but_for_the_number():
    """Names in two languages can be the same classes; three cannot be two."""
    check_class_names(["cat", "dog"], teacher("Katze", "Hund"), same_order=True)
    with pytest.raises(ValueError, match="the teacher 2"):
        check_class_names(["cat", "dog", "cow"], teacher("Katze", "Hund"), same_order=True)


def test_many_classes_are_not_all_listed():
    """A message of a thousand names is read by nobody."""
    with pytest.raises(ValueError, match="1000 in all") as caught:
        check_class_names([f"a{i}" for i in range(1000)], teacher(*(f"b{i}" for i in range(1000))))
    assert len(str(caught.value)) < 1000
