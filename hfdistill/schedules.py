"""A weight or a temperature as a function of training progress.

Progress is the share of the training that is done, from 0 at the start to 1 at the end, so one schedule fits a run of
any length. A schedule is a value: it is compared, hashed and copied, and it keeps no count of its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from difflib import SequenceMatcher

_ROUNDING = 1e-6  # how far progress may stray outside [0, 1] and still count as a rounding error


class Schedule(ABC):
    """A number that depends on training progress. Subclass it and write `at`.

    Calling it checks progress first: a rounding error outside [0, 1] is clamped, anything further is refused.
    """

    def __call__(self, progress: float) -> float:
        """The value at this progress.

        Args:
            progress: Share of the training done, from 0 to 1.

        Raises:
            TypeError: `progress` is not a number.
            ValueError: `progress` is not a number between 0 and 1.
        """
        _number("progress", progress)
        if not -_ROUNDING <= progress <= 1 + _ROUNDING:
            raise ValueError(
                f"A schedule needs training progress between 0 and 1, got {progress}: it is a share of the training, "
                "not a step. Pass step / max_steps."
            )
        return self.at(min(max(progress, 0.0), 1.0))

    @abstractmethod
    def at(self, progress: float) -> float:
        """The value at a progress that is known to be in [0, 1]."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value throughout.

    Args:
        value: The value.
    """

    value: float

    def __post_init__(self) -> None:
        _number("value", self.value)

    def at(self, progress: float) -> float:
        """The value, whatever the progress."""
        return float(self.value)


@dataclass(frozen=True)
class Linear(Schedule):
    """From `start` to `end` in a straight line between two moments, constant before and after.

    Args:
        start: Value up to `begin`.
        end: Value from `finish` on.
        begin: Progress at which the change begins, in [0, 1).
        finish: Progress at which it is complete, in (begin, 1].
    """

    start: float
    end: float
    begin: float = 0.0
    finish: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _number(name, value)
        if not 0 <= self.begin < self.finish <= 1:
            raise ValueError(
                f"{type(self).__name__} needs 0 <= begin < finish <= 1, got begin={self.begin}, finish={self.finish}: "
                "both are shares of the training. For a sudden change use Piecewise."
            )

    def at(self, progress: float) -> float:
        """The value at this progress."""
        done = min(max((progress - self.begin) / (self.finish - self.begin), 0.0), 1.0)
        share = self._share(done)
        return self.start * (1 - share) + self.end * share  # in this form both ends are exact

    def _share(self, done: float) -> float:
        return done


@dataclass(frozen=True)
class Cosine(Linear):
    """From `start` to `end` along half a cosine wave, slow at both ends; otherwise as `Linear`.

    Args:
        start: Value up to `begin`.
        end: Value from `finish` on.
        begin: Progress at which the change begins, in [0, 1).
        finish: Progress at which it is complete, in (begin, 1].
    """

    def _share(self, done: float) -> float:
        return (1 - math.cos(math.pi * done)) / 2


@dataclass(frozen=True, init=False, repr=False)
class Piecewise(Schedule):
    """One value after another: each holds from its progress on, until the next takes over.

    `Piecewise({0.0: 1.0, 0.8: 0.0})` is 1 for the first four fifths of the training and 0 from then on.

    Args:
        values: Progress in [0, 1] to value, in any order; one of them must begin at 0.
    """

    values: tuple[tuple[float, float], ...]

    def __init__(self, values: Mapping[float, float]) -> None:
        if not isinstance(values, Mapping):
            raise TypeError(
                f"Piecewise needs a mapping of progress to value, got {values!r}. Write {{0: 1.0, 0.8: 0}}."
            )
        for progress, value in values.items():
            _number("a progress in values", progress)
            _number("value", value)
        if not values or min(values) != 0 or max(values) > 1:
            raise ValueError(
                f"Piecewise needs its first progress to be 0 and all of them within [0, 1], got {sorted(values)}: "
                "otherwise some of the training has no value. Write {0: 1.0, 0.8: 0.0}."
            )
        # A sorted tuple, because a mapping could be neither hashed nor kept from changing.
        object.__setattr__(self, "values", tuple(sorted(values.items())))

    def __repr__(self) -> str:
        return f"Piecewise({dict(self.values)})"

    def at(self, progress: float) -> float:
        """The value whose turn it is."""
        return float([value for begin, value in self.values if begin <= progress][-1])


@dataclass(frozen=True)
class Ramp(Schedule):
    """Grow to `value` along value exp(-5 (1 - min(p, finish) / finish)^2), then stay.

    The ramp-up of Laine & Aila 2017, Temporal Ensembling, https://arxiv.org/abs/1610.02242, appendix A; online
    distillation uses it to let peers become worth listening to. It starts at 0.67 % of `value`, not at 0.

    Args:
        value: Value from `finish` on.
        finish: Progress at which the ramp is complete, in [0, 1]; 0 means no ramp. The default is the 80 of 300 epochs
            that the published online methods use.
    """

    value: float
    finish: float = 80 / 300

    def __post_init__(self) -> None:
        _number("value", self.value)
        _number("finish", self.finish)
        if not 0 <= self.finish <= 1:
            raise ValueError(
                f"Ramp needs finish within [0, 1], got {self.finish}: it is a share of the training, not a step or an "
                "epoch. Write epochs of ramp / epochs of training."
            )

    def at(self, progress: float) -> float:
        """The value at this progress."""
        missing = 1 - progress / self.finish if progress < self.finish else 0.0
        return self.value * math.exp(-5 * missing**2)


_SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "piecewise": Piecewise,
    "ramp": Ramp,
}


def as_schedule(value: float | Schedule) -> Schedule:
    """Take a plain number as a constant schedule, and a schedule as it is.

    Args:
        value: A number or a schedule.

    Raises:
        TypeError: `value` is neither.
        ValueError: `value` is not finite.
    """
    return value if isinstance(value, Schedule) else Constant(value)


def schedule_from_mapping(mapping: Mapping[str, object]) -> Schedule:
    """Build a schedule from a configuration file: `{"schedule": "linear", "start": 1, "end": 0}`.

    Args:
        mapping: The name under "schedule" (constant, linear, cosine, piecewise, ramp), and that schedule's arguments.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The schedule or an argument is unknown, one is missing, or a value does not fit.
    """
    arguments = {str(key): value for key, value in mapping.items()}
    name = str(arguments.pop("schedule", ""))
    if name not in _SCHEDULES:
        raise ValueError(
            f"There is no schedule {name!r} (under the key 'schedule'). Accepted: {_nearest_first(_SCHEDULES, name)}."
        )
    accepted = {field.name: field.default is MISSING for field in fields(_SCHEDULES[name])}  # type: ignore[arg-type]
    for keyword in arguments:
        if keyword not in accepted:
            raise ValueError(
                f"The schedule '{name}' has no argument '{keyword}'. Accepted: {_nearest_first(accepted, keyword)}."
            )
    missing = [keyword for keyword, needed in accepted.items() if needed and keyword not in arguments]
    if missing:
        raise ValueError(f"The schedule '{name}' needs {missing} too, got only {sorted(arguments)}. Add it.")
    return _SCHEDULES[name](**arguments)


def _nearest_first(names: Mapping[str, object], given: str) -> str:
    return ", ".join(sorted(names, key=lambda name: -SequenceMatcher(None, name, given).ratio()))


def _number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"A schedule needs a number as {name}, got {value!r} ({type(value).__name__}). Write a number, such as "
            "0.5; for a value that changes use Linear, Cosine, Piecewise or Ramp, or in YAML {schedule: linear, ...}."
        )
    if not math.isfinite(value):
        raise ValueError(
            f"A schedule needs a finite number as {name}, got {value}: the loss would be lost with it. "
            "Write a finite number, and look for the division that gave this one."
        )
