"""A report as JSON: what goes in comes out, and nothing that is no JSON goes in."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from hfdistill.measurement import Latency
from hfdistill.report.contents import ModelReport, ReliabilityBin, Report, Score, Similarity
from hfdistill.report.record import from_json, plain, to_json


def report() -> Report:
    """Make a report with every field filled in, and a model with none."""
    full = ModelReport(
        name="kd – ü",
        kind="student",
        scores={"accuracy": Score(0.8, 0.01, 0.75, 0.85, 3), "f1": Score(0.7, None, None, None, 1)},
        parameters=10,
        difference=(0.1, -0.1, 0.3),
        retention=0.9,
        recovered_gap=0.5,
        agreement=0.95,
        kl=0.1,
        calibration_error=0.02,
        reliability=(ReliabilityBin(0.0, 0.5, 0, 0.0, 0.0), ReliabilityBin(0.5, 1.0, 9, 0.8, 0.7)),
        confusion=((3, 1), (0, 5)),
        bytes=40,
        flops=20,
        peak_memory=1000,
        latencies=(Latency("torch", 1, 0.5, (0.4, 0.5, 0.6), "cpu", 1),),
        curves={"loss/kd": ((1, 2), (0.5, 0.25))},
        training_seconds=12.5,
    )
    return Report(
        title="Distillation",
        metric="accuracy",
        models=[ModelReport("teacher", "teacher", {}, 100), full],
        label_names=("no", "yes"),
        similarities=(Similarity("kd – ü", ((1.0, 0.5), (0.25, -0.01)), ((0, 0), (1, 1))),),
        rows=9,
        machine="a machine",
        versions={"torch": "2"},
        protocol={"seeds": [0, 1], "arguments": {"learning_rate": 1e-4, "fp16": False, "deepspeed": None}},
        notes=("nothing is missing",),
    )


def test_a_report_survives_json():
    """It is put together once, at some cost, and shown in several forms."""
    assert from_json(to_json(report())) == report()
    empty = Report("nothing", "", [])
    assert from_json(to_json(empty)).models == []


def test_the_json_is_for_readers_too():
    """Names stay names, and text stays text, so that a notebook can read it without this package."""
    content = json.loads(to_json(report()))
    assert content["models"][1]["scores"]["accuracy"]["mean"] == 0.8
    assert "kd – ü" in to_json(report())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_figures_that_are_none_are_not_written(value: float):
    """NaN is no JSON: other readers of the file would fail on it."""
    broken = report()
    broken.models[1] = replace(broken.models[1], kl=value)
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(broken)


@pytest.mark.parametrize("text", ["{}", "[1]", "null", '{"models": [{}]}', "not json"])
def test_json_that_is_no_report_is_refused(text: str):
    """A wrong file is the usual cause; a KeyError would not say so."""
    with pytest.raises(ValueError, match=r"to_json wrote of a Report|Expecting value"):
        from_json(text)


def test_plain_values_are_what_json_gives_back():
    """A protocol holds whatever an experiment noted: enumerations, paths, tuples, infinite limits."""
    found = plain({"a": (1, 2.5, True, None), 3: {"b": math.inf}, "c": {4}.__class__, "d": math.nan})
    assert found == {"a": [1, 2.5, True, None], "3": {"b": "inf"}, "c": "<class 'set'>", "d": "nan"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
