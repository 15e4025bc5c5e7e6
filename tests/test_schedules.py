"""Schedules: exact at their ends, monotone between them, and impossible to misread from a configuration."""

from __future__ import annotations

import copy
import math
import pickle
from itertools import pairwise

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hfdistill.schedules import (
    Constant,
    Cosine,
    Linear,
    Piecewise,
    Ramp,
    Schedule,
    as_schedule,
    schedule_from_mapping,
)

values = st.floats(-1e6, 1e6)
progresses = st.floats(0.0, 1.0)
windows = st.tuples(st.integers(0, 100), st.integers(0, 100)).filter(lambda w: w[0] != w[1]).map(sorted)


@given(st.sampled_from([Linear, Cosine]), values, values, windows, progresses, progresses)
def test_linear_and_cosine_are_monotone_and_exact_at_their_ends(kind, start, end, window, one, other):
    """A weight that overshoots trains on the wrong sign; one that never quite reaches 0 keeps the teacher running."""
    schedule = kind(start, end, begin=window[0] / 100, finish=window[1] / 100)
    assert schedule(0.0) == schedule(schedule.begin) == start
    assert schedule(1.0) == schedule(schedule.finish) == end
    earlier, later = sorted((one, other))
    rounding = 1e-9 * (1 + abs(start) + abs(end))
    assert (schedule(later) - schedule(earlier)) * (1 if end >= start else -1) >= -rounding
    assert min(start, end) - rounding <= schedule(one) <= max(start, end) + rounding


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        (Linear(1.0, 0.0), 0.25, 0.75),
        (Linear(4, 1, begin=0.2, finish=0.6), 0.4, 2.5),
        (Cosine(1.0, 0.0), 0.5, 0.5),
        (Cosine(1.0, 0.0), 0.25, (1 + math.sqrt(0.5)) / 2),
        (Ramp(1.0, finish=0.8), 0.0, 0.006737946999085467),
        (Ramp(1.0, finish=0.8), 0.4, 0.2865047968601901),
        (Ramp(1.0, finish=0.8), 0.8, 1.0),
        (Ramp(2.0), 80 / 300, 2.0),
        (Ramp(2.0, finish=0), 0.0, 2.0),
        (Constant(3), 0.7, 3.0),
    ],
)
def test_values_along_the_way(schedule, progress, expected):
    """Values worked out by hand, and the published ramp's at 0, 40 and 80 of 80 epochs."""
    assert schedule(progress) == pytest.approx(expected, rel=1e-12)


@given(values, st.floats(0.0, 1.0), progresses, progresses)
def test_ramp_grows_to_its_value_and_stays(value, finish, one, other):
    """The ramp exists to hold a loss back early on: it must never shrink again."""
    earlier, later = sorted((one, other))
    schedule = Ramp(value, finish)
    assert abs(schedule(earlier)) <= abs(schedule(later)) <= abs(value)
    assert schedule(max(finish, one)) == value


@given(st.dictionaries(st.integers(1, 100), values), values, progresses)
def test_piecewise_holds_each_value_from_its_own_progress_on(later, first, progress):
    """A boundary belongs to the value that begins there: off by one step, the last phase would never be alone."""
    steps = {0.0: first} | {begin / 100: value for begin, value in later.items()}
    schedule = Piecewise(steps)
    for begin, value in steps.items():
        assert schedule(begin) == value
    ordered = sorted(steps)
    for begin, following in pairwise(ordered):
        assert schedule(math.nextafter(following, 0.0)) == steps[begin]
    assert schedule(progress) == steps[max(begin for begin in steps if begin <= progress)]


def test_piecewise_takes_its_values_in_any_order():
    """YAML mappings come in the order they were written."""
    assert Piecewise({0.8: 0.0, 0: 1.0}) == Piecewise({0.0: 1.0, 0.8: 0.0})
    assert Piecewise({0.8: 0.0, 0: 1.0}).values == ((0, 1.0), (0.8, 0.0))


@pytest.mark.parametrize(
    "schedule",
    [Constant(0.5), Linear(1, 0), Cosine(1, 0, 0.1, 0.9), Piecewise({0.0: 1.0, 0.8: 0.0}), Ramp(1.0)],
    ids=str,
)
def test_schedules_are_values(schedule):
    """Arguments are copied, pickled to workers, printed into model cards and compared on resume."""
    assert pickle.loads(pickle.dumps(schedule)) == copy.deepcopy(schedule) == schedule
    assert hash(copy.deepcopy(schedule)) == hash(schedule)
    assert eval(repr(schedule)) == schedule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{schedule: constant, value: 2}", Constant(2)),
        ("{schedule: linear, start: 1, end: 0}", Linear(1, 0)),
        ("{schedule: linear, start: 1, end: 0, begin: 0.1, finish: 0.5}", Linear(1, 0, 0.1, 0.5)),
        ("{schedule: cosine, start: 4, end: 1, begin: 0.5}", Cosine(4, 1, 0.5)),
        ("{schedule: piecewise, values: {0: 1.0, 0.8: 0.0}}", Piecewise({0: 1.0, 0.8: 0.0})),
        ("{schedule: ramp, value: 1.0, finish: 0.3}", Ramp(1.0, 0.3)),
    ],
)
def test_yaml_builds_exactly_the_python_object(text, expected):
    """A YAML recipe and the Python it stands for must be one and the same run; the mapping is left as it was."""
    mapping = yaml.safe_load(text)
    before = copy.deepcopy(mapping)
    assert schedule_from_mapping(mapping) == expected
    assert mapping == before
    again = {**vars(expected), **({"values": dict(expected.values)} if isinstance(expected, Piecewise) else {})}
    written = yaml.safe_dump({"schedule": mapping["schedule"], **again})
    assert schedule_from_mapping(yaml.safe_load(written)) == expected


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        ({"schedule": "liner", "start": 1, "end": 0}, "no schedule 'liner'.*Accepted: linear, "),
        ({"start": 1, "end": 0}, "under the key 'schedule'.*constant"),
        ({"schedule": "linear", "strat": 1, "end": 0}, "no argument 'strat'. Accepted: start, "),
        ({"schedule": "linear", "start": 1}, r"needs \['end'\] too"),
        ({"schedule": "linear", "start": 1, "end": 0, "begin": 0.5, "finish": 0.5}, "For a sudden change"),
        ({"schedule": "linear", "start": 1, "end": 0, "finish": 500}, "shares of the training"),
        ({"schedule": "cosine", "start": 1, "end": float("inf")}, "finite number as end"),
        ({"schedule": "ramp", "value": 1, "finish": 80}, "not a step or an epoch"),
        ({"schedule": "piecewise", "values": {}}, "first progress to be 0"),
        ({"schedule": "piecewise", "values": {0.2: 1.0}}, "first progress to be 0"),
        ({"schedule": "piecewise", "values": {0: 1.0, 100: 0.0}}, "within"),
        ({"schedule": "piecewise", "values": {-0.1: 1.0, 0.0: 1.0}}, "first progress to be 0"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(mapping, reason):
    """A misspelt keyword that is swallowed costs a training run; the message must hold the cure."""
    with pytest.raises(ValueError, match=reason):
        schedule_from_mapping(mapping)


@pytest.mark.parametrize(
    "build",
    [
        lambda: schedule_from_mapping({"schedule": "linear", "start": "1e-3x", "end": 0}),
        lambda: schedule_from_mapping({"schedule": "piecewise", "values": [1.0, 0.0]}),
        lambda: schedule_from_mapping({"schedule": "piecewise", "values": {"0": 1.0}}),
        lambda: as_schedule(True),
        lambda: as_schedule("linear"),
        lambda: as_schedule(None),
        lambda: Constant(1.0)("0.5"),
    ],
)
def test_the_wrong_type_is_refused_with_an_example(build):
    """True is 1 to Python and a string is a schedule's name to a reader: both are mistakes, not weights."""
    with pytest.raises(TypeError, match="Write"):
        build()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_is_finite(value):
    """A loss weighted with nan is lost for good, thousands of steps before anyone looks."""
    with pytest.raises(ValueError, match="finite"):
        as_schedule(value)


def test_numbers_become_constants_and_schedules_stay():
    """Losses take `weight=0.5` and `weight=Linear(...)` alike."""
    schedule = Linear(1, 0)
    assert as_schedule(schedule) is schedule
    assert as_schedule(2) == Constant(2)
    assert as_schedule(0.5)(0.3) == 0.5


def test_progress_is_a_share_of_the_training():
    """A rounding error at the end is forgiven; a step in place of a share would silently mean "the end"."""
    schedule = Linear(1.0, 0.0)
    assert schedule(1 + 1e-9) == 0.0
    assert schedule(-1e-9) == 1.0
    for progress in (500, 1.01, -0.01, math.nan, math.inf):
        with pytest.raises(ValueError, match="progress"):
            schedule(progress)


def test_a_schedule_of_your_own_is_one_method():
    """The classes here cannot foresee every paper: a subclass writes `at` and inherits the checks."""

    class Squared(Schedule):
        def at(self, progress: float) -> float:
            return progress**2

    assert as_schedule(Squared())(0.5) == 0.25
    with pytest.raises(ValueError, match="max_steps"):
        Squared()(3)
