"""Which student layer learns from which teacher layer.

A `LayerMap` is a rule; `resolve` turns it into pairs once both depths are known. Layers are numbered as transformers
numbers `hidden_states`: 0 is the embedding output and 1..L are the outputs of layers 1..L, so -1 is the last layer and
-(L+1) the embeddings. This module sees no model and no tensor: it is integers only.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from fractions import Fraction
from typing import Any, TypeAlias

Pairs: TypeAlias = tuple[tuple[int, int], ...]
Argument: TypeAlias = int | float | Pairs | None

_REACH_EMBEDDINGS = {"uniform", "dynabert", "explicit"}


@dataclass(frozen=True, repr=False)
class LayerMap:
    """A rule that pairs student layers with teacher layers; build it with one of its constructors.

    Two maps are equal when they are the same rule with the same arguments, and `LayerMap.parse(str(layer_map))` gives
    the map back. Every rule but `explicit` needs a student that is not deeper than its teacher, and gives pairs that
    strictly increase on both sides.

    Attributes:
        name: The rule, the name of its constructor.
        argument: What the rule takes beside the two depths: a step, a depth multiplier, the pairs, or None.
        embeddings: Whether pairs with layer 0 (the embedding output) are kept.
        final: Whether the pair of the student's last layer is kept.
    """

    name: str
    argument: Argument = None
    embeddings: bool = True
    final: bool = True

    def __post_init__(self) -> None:
        if self.name not in _RULES:
            raise ValueError(_unknown(self.name))

    @classmethod
    def uniform(cls, embeddings: bool = True) -> LayerMap:
        """Spread the student evenly over the teacher: g(m) = m Lt / Ls, so that ends meet ends.

        Jiao et al. 2020, TinyBERT, https://arxiv.org/abs/1909.10351, section 3. The paper's code needs Lt to be a
        multiple of Ls; for other depths this rounds to the nearest layer, halves up, which is our own choice.
        A student of 4 layers and a teacher of 12 give (0, 0), (1, 3), (2, 6), (3, 9), (4, 12).

        Args:
            embeddings: Whether the embedding outputs are a pair too.
        """
        return cls("uniform", embeddings=embeddings)

    @classmethod
    def last(cls, final: bool = True) -> LayerMap:
        """Align both models at the top: (m, Lt - Ls + m).

        With `final=False` this is PKD-last: Sun et al. 2019, Patient Knowledge Distillation,
        https://arxiv.org/abs/1908.09355, section 3.2; depths 6 and 12 give (1, 7), (2, 8), ... (5, 11).

        Args:
            final: Whether the student's last layer, which the logits already supervise, is a pair too.
        """
        return cls("last", final=final)

    @classmethod
    def first(cls) -> LayerMap:
        """Align both models at the bottom: (m, m) for m = 1..Ls."""
        return cls("first")

    @classmethod
    def skip(cls) -> LayerMap:
        """PKD-skip: the uniform map of the intermediate layers, (m, m Lt / Ls) for m = 1..Ls-1.

        Sun et al. 2019, Patient Knowledge Distillation, https://arxiv.org/abs/1908.09355, section 3.2. Depths 6 and 12
        give (1, 2), (2, 4), ... (5, 10). Depths that do not divide are rounded as `uniform` rounds them.
        """
        return cls("skip")

    @classmethod
    def every(cls, step: int) -> LayerMap:
        """Take every `step`-th teacher layer: (m, m step) for m = 1..Ls.

        Args:
            step: Teacher layers per student layer, at least 1.

        Raises:
            TypeError: `step` is not an integer.
            ValueError: `step` is below 1.
        """
        if not _is_index(step):
            raise TypeError(f"LayerMap.every needs a whole number of teacher layers, got {step!r}. Write every(2).")
        if step < 1:
            raise ValueError(
                f"LayerMap.every needs a step of at least 1, got {step}: a smaller one never leaves the embeddings. "
                "Write every(2) for each second teacher layer."
            )
        return cls("every", step)

    @classmethod
    def dynabert(cls, depth_multiplier: float, embeddings: bool = True) -> LayerMap:
        """The layers that DynaBERT keeps when it drops depth: floor(i / m) for i < round(m Lt), then Lt.

        Hou et al. 2020, DynaBERT, https://arxiv.org/abs/2004.04037, section 2.2, as its code computes it. The student
        has round(m Lt) layers and its i-th hidden state learns from the i-th kept one; a teacher of 12 layers and
        m = 0.5 give (0, 0), (1, 2), ... (6, 12).

        Args:
            depth_multiplier: m, the share of the teacher's layers that the student has, in (0, 1].
            embeddings: Whether the embedding outputs are a pair too.

        Raises:
            TypeError: `depth_multiplier` is not a number.
            ValueError: `depth_multiplier` is outside (0, 1].
        """
        if isinstance(depth_multiplier, bool) or not isinstance(depth_multiplier, int | float):
            raise TypeError(
                f"LayerMap.dynabert needs a number as depth multiplier, got {depth_multiplier!r}. Write dynabert(0.5)."
            )
        if not 0 < depth_multiplier <= 1:
            raise ValueError(
                f"LayerMap.dynabert needs a depth multiplier in (0, 1], got {depth_multiplier}: it is the share of "
                "the teacher's layers that the student keeps. Write dynabert(0.5) for half of them."
            )
        return cls("dynabert", float(depth_multiplier), embeddings)

    @classmethod
    def explicit(cls, pairs: Iterable[Sequence[int]], embeddings: bool = True) -> LayerMap:
        """Pairs that you write yourself, kept in your order.

        One layer may stand in several pairs; the same pair twice is refused. The student may be the deeper model.

        Args:
            pairs: (student layer, teacher layer), negative numbers counting from the end.
            embeddings: Whether pairs with layer 0 on either side are kept.

        Raises:
            ValueError: `pairs` is empty, or something in it is not two integers.
        """
        return cls("explicit", _checked_pairs(pairs), embeddings)

    @classmethod
    def parse(cls, spec: LayerMap | str | list[Sequence[int]] | tuple[Sequence[int], ...]) -> LayerMap:
        """Read a map from what a configuration file can hold.

        Args:
            spec: A LayerMap, returned as it is; a rule as `str` writes it ("uniform", "every(2)",
                "last(final=False)"); or a list of pairs, as for `explicit`.

        Raises:
            TypeError: `spec` is none of these.
            ValueError: The rule is unknown, or its arguments do not fit it.
        """
        if isinstance(spec, LayerMap):
            return spec
        if isinstance(spec, str):
            return _parse_rule(spec)
        if isinstance(spec, list | tuple):
            return cls.explicit(spec)
        raise TypeError(
            f"A layer map is a LayerMap, the name of a rule, or a list of (student layer, teacher layer) pairs; got "
            f'{spec!r}. Write "uniform" for the usual choice.'
        )

    def resolve(self, student_depth: int, teacher_depth: int) -> Pairs:
        """Apply the rule to two models.

        Args:
            student_depth: Number of layers of the student, Ls, at least 1.
            teacher_depth: Number of layers of the teacher, Lt, at least 1.

        Returns:
            (student layer, teacher layer) pairs, student in 0..Ls and teacher in 0..Lt, never negative, never empty.

        Raises:
            TypeError: A depth is not an integer.
            ValueError: A depth is below 1, the rule does not fit the two depths, or no pair is left.
        """
        for side, depth in (("student", student_depth), ("teacher", teacher_depth)):
            if not _is_index(depth):
                raise TypeError(f"The {side}'s depth is its number of layers, an integer; got {depth!r}.")
        try:
            return self._pairs(student_depth, teacher_depth)
        except _RuleError as error:
            why, advice = error.args
            raise ValueError(
                f"The layer map '{self}' cannot pair a student of depth {student_depth} with a teacher of depth "
                f"{teacher_depth}: {why}. What to do: {advice}."
            ) from None

    def without_embeddings(self) -> LayerMap:
        """The same rule, less the pairs in which either layer is 0: attention, for one, has no layer 0."""
        # The other rules never reach layer 0; leaving them as they are keeps equal maps equal.
        return replace(self, embeddings=False) if self.name in _REACH_EMBEDDINGS else self

    def __str__(self) -> str:
        written = list(self.argument) if isinstance(self.argument, tuple) else self.argument
        arguments = [] if written is None else [repr(written)]
        arguments += [] if self.embeddings else ["embeddings=False"]
        arguments += [] if self.final else ["final=False"]
        return f"{self.name}({', '.join(arguments)})" if arguments else self.name

    def __repr__(self) -> str:
        return f"LayerMap.{self}" if str(self).endswith(")") else f"LayerMap.{self}()"

    def _pairs(self, student_depth: int, teacher_depth: int) -> Pairs:
        if student_depth < 1 or teacher_depth < 1:
            raise _RuleError("a model without layers has nothing to map", "pass the number of layers of each model")
        if self.name != "explicit" and student_depth > teacher_depth:
            raise _RuleError(
                "two student layers would have to share a teacher layer",
                "use a shallower student, check that student and teacher are not swapped, or write the pairs with "
                "LayerMap.explicit",
            )
        pairs = _RULES[self.name](student_depth, teacher_depth, self.argument)
        kept = tuple(p for p in pairs if (self.embeddings or 0 not in p) and (self.final or p[0] < student_depth))
        if not kept:
            raise _RuleError(
                "embeddings or last layers left out, no pair remains (one layer has no intermediate layer)",
                "use a deeper student, or a rule that keeps the last layer such as 'uniform' or 'last'",
            )
        return kept


class _RuleError(Exception):
    """Why a rule does not fit, and advice; `LayerMap.resolve` adds the map and the two depths."""


def _is_index(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _spread(student: int, student_depth: int, teacher_depth: int) -> int:
    """Round m Lt / Ls to the nearest layer, halves up, in integers so that no depth is at the mercy of a float."""
    return (2 * student * teacher_depth + student_depth) // (2 * student_depth)


def _every(student_depth: int, teacher_depth: int, step: int) -> list[tuple[int, int]]:
    if student_depth * step > teacher_depth:
        raise _RuleError(
            f"the student's last layer would need teacher layer {student_depth * step}",
            f"use every({teacher_depth // student_depth}) or 'uniform'",
        )
    return [(m, m * step) for m in range(1, student_depth + 1)]


def _dynabert(student_depth: int, teacher_depth: int, multiplier: float) -> list[tuple[int, int]]:
    share = Fraction(str(multiplier))  # the decimal that was written: floor(i / m) must not miss a layer by one ulp
    kept_depth = round(share * teacher_depth)
    if student_depth != kept_depth:
        raise _RuleError(
            f"a depth multiplier of {multiplier} keeps {kept_depth} of {teacher_depth} teacher layers",
            f"use a multiplier near {student_depth / teacher_depth:.4g}"
            + (f", or a student of {kept_depth} layers" if kept_depth else ""),
        )
    return list(enumerate([int(i / share) for i in range(kept_depth)] + [teacher_depth]))


def _explicit(student_depth: int, teacher_depth: int, pairs: Pairs) -> list[tuple[int, int]]:
    resolved: list[tuple[int, int]] = []
    for pair in pairs:
        counted = []
        for side, layer, depth in zip(("student", "teacher"), pair, (student_depth, teacher_depth), strict=True):
            if not -depth - 1 <= layer <= depth:
                raise _RuleError(
                    f"the pair {pair} names {side} layer {layer}, but the {side} has layers 0 (embeddings) to {depth}",
                    f"write a layer from 0 to {depth}, or from -1 (the last) to {-depth - 1} (the embeddings)",
                )
            counted.append(layer if layer >= 0 else layer + depth + 1)
        if (counted[0], counted[1]) in resolved:
            raise _RuleError(
                f"the pair {pair} is there twice (as layers {counted[0]} and {counted[1]}) and would count double",
                "leave one out, or raise the weight of the loss",
            )
        resolved.append((counted[0], counted[1]))
    return resolved


_RULES: dict[str, Callable[[int, int, Any], list[tuple[int, int]]]] = {
    "uniform": lambda student, teacher, _: [(m, _spread(m, student, teacher)) for m in range(student + 1)],
    "last": lambda student, teacher, _: [(m, teacher - student + m) for m in range(1, student + 1)],
    "first": lambda student, _, __: [(m, m) for m in range(1, student + 1)],
    "skip": lambda student, teacher, _: [(m, _spread(m, student, teacher)) for m in range(1, student)],
    "every": _every,
    "dynabert": _dynabert,
    "explicit": _explicit,
}
_CONSTRUCTORS: dict[str, tuple[Callable[..., LayerMap], str]] = {  # and how to write each
    "uniform": (LayerMap.uniform, "uniform"),
    "last": (LayerMap.last, "last"),
    "first": (LayerMap.first, "first"),
    "skip": (LayerMap.skip, "skip"),
    "every": (LayerMap.every, "every(2)"),
    "dynabert": (LayerMap.dynabert, "dynabert(0.5)"),
    "explicit": (LayerMap.explicit, "explicit([(1, 2), (2, 4)])"),
}


def _checked_pairs(pairs: object) -> Pairs:
    if not isinstance(pairs, Iterable):
        raise ValueError(f"A layer map is a list of pairs, got {pairs!r}. Write [(1, 3), (2, 6)].")
    checked: list[tuple[int, int]] = []
    for pair in pairs:
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(_is_index(layer) for layer in pair):
            raise ValueError(
                "A layer map is a list of (student layer, teacher layer) pairs of integers, and "
                f"{pair!r} is no such pair: without both sides nothing says which layer teaches which. "
                "Write [(1, 3), (2, 6)], or name a rule such as 'uniform'."
            )
        checked.append((pair[0], pair[1]))
    if not checked:
        raise ValueError(
            "A layer map needs at least one pair, got none. Write [(1, 3), (2, 6)], or leave the loss out."
        )
    return tuple(checked)


def _unknown(name: str) -> str:
    nearest = sorted(_CONSTRUCTORS, key=lambda known: -SequenceMatcher(None, known, name).ratio())
    accepted = ", ".join(f"'{_CONSTRUCTORS[known][1]}'" for known in nearest)
    return f"There is no layer map '{name}'. Write one of {accepted}, or a list of (student, teacher) layer pairs."


def _parse_rule(text: str) -> LayerMap:
    """Read "name" or "name(literal, keyword=literal)"; nothing is evaluated but literals."""
    text = text.strip()
    name = text.partition("(")[0].strip()
    if name not in _CONSTRUCTORS:
        raise ValueError(_unknown(name))
    constructor, example = _CONSTRUCTORS[name]
    try:
        call = ast.parse(text if "(" in text else f"{text}()", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise SyntaxError("not a rule and its arguments")
        positional = [ast.literal_eval(argument) for argument in call.args]
        keywords = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        inspect.signature(constructor).bind(*positional, **keywords)
    except (SyntaxError, TypeError) as error:
        raise ValueError(f"The layer map '{text}' cannot be read: {error}. Write it as '{example}'.") from None
    except ValueError:  # its text is about syntax trees
        raise ValueError(f"The layer map '{text}' takes only plain values. Write it as '{example}'.") from None
    return constructor(*positional, **keywords)
