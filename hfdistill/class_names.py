"""Whether a data set's classes are a classifier's: as many, and the same ones in the same order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hfdistill.anatomy import Anatomy

_GENERIC = re.compile(r"(LABEL_)?\d+", re.IGNORECASE)


def check_class_names(data: Sequence[str], teacher: Anatomy, same_order: bool = False) -> None:
    """Refuse a teacher that was trained on other classes than the data has, or on the same in another order.

    Capitals, hyphens, underscores and spaces are not told apart; names that are only numbers (LABEL_0, "0") say
    nothing, and then only how many there are counts.

    Args:
        data: names of the data's classes, by index; empty for a regression.
        teacher: its anatomy.
        same_order: the classes are the same in this order, whatever their names.

    Raises:
        ValueError: with both lists, and what to do.
    """
    wanted = len(data) or 1
    if teacher.classes != wanted:
        raise ValueError(
            f"the data has {wanted} classes{f' ({_listed(data)})' if data else ' (a regression)'}, the teacher "
            f"{teacher.classes}. A class is the index of a logit, so the teacher cannot answer for this data. Give a "
            "teacher that was trained on it, or fine-tune one here: teacher_body=... instead of teacher=..."
        )
    names = [teacher.label_names.get(index, "") for index in range(wanted)]
    ours, theirs = ([_plain(name) for name in side] for side in (data, names))
    if not data or same_order or say_nothing([*data, *names]) or ours == theirs:
        return
    if sorted(ours) == sorted(theirs):
        order = _spelt(data, names)
        raise ValueError(
            f"data and teacher have the same classes in another order: {_listed(data)} (data), {_listed(names)} "
            "(teacher). Every class would be learnt from the wrong one. Put the data into the teacher's order: "
            f"label_order={order} of an image recipe; for text, dataset.align_labels_with_mapping("
            f"{ {name: index for index, name in enumerate(order)} }, label_column) before the recipe."
        )
    raise ValueError(
        f"data and teacher name their classes differently: {_listed(data)} (data), {_listed(names)} (teacher). If "
        "they are the same ones in the same order, say so with same_label_order=True; else give a teacher of this "
        "data's classes, or fine-tune one here: teacher_body=... instead of teacher=..."
    )


def say_nothing(names: Iterable[str]) -> bool:
    """Whether one of the names is only a number, as transformers gives them where nobody did: LABEL_0."""
    return any(not name or _GENERIC.fullmatch(name) is not None for name in names)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def _spelt(data: Sequence[str], names: Sequence[str]) -> list[str]:
    """The teacher's classes in its order, each as the data spells it."""
    spelling = {_plain(name): name for name in data}
    return [spelling[_plain(name)] for name in names]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:12])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 12 else shown
