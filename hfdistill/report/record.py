"""A report as JSON and back again, without loss."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hfdistill.measurement import Latency
from hfdistill.report.contents import ModelReport, ReliabilityBin, Report, Score, Similarity


def to_json(report: Report) -> str:
    """Write a report as a JSON object; `from_json` gives an equal one back.

    Raises:
        ValueError: A figure is NaN or infinite, which JSON does not have and no figure of a report is.
    """
    return json.dumps(asdict(report), indent=2, allow_nan=False, ensure_ascii=False)


def from_json(text: str) -> Report:
    """Read what `to_json` wrote.

    Raises:
        ValueError: It is not JSON, or not a report's.
    """
    content = json.loads(text)
    try:
        return Report(
            **{
                **content,
                "models": [_model(model) for model in content["models"]],
                "similarities": tuple(Similarity(**_tuples(entry)) for entry in content["similarities"]),
                "label_names": tuple(content["label_names"]),
                "notes": tuple(content["notes"]),
            }
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"expected a JSON object that to_json wrote of a Report, got {text[:80]!r}: {error}"
        ) from error


def plain(value: Any) -> Any:
    """A value as JSON will give it back: mappings, lists, texts and finite numbers; anything else as its text."""
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if value is None or (isinstance(value, bool | int | float | str) and finite) else str(value)


def _model(record: Mapping[str, Any]) -> ModelReport:
    difference, matrix = record["difference"], record["confusion"]
    return ModelReport(
        **{
            **record,
            "scores": {name: Score(**score) for name, score in record["scores"].items()},
            "difference": None if difference is None else tuple(difference),
            "reliability": tuple(ReliabilityBin(**part) for part in record["reliability"]),
            "confusion": None if matrix is None else _tuples(matrix),
            "latencies": tuple(Latency.from_record(latency) for latency in record["latencies"]),
            "curves": {name: _tuples(curve) for name, curve in record["curves"].items()},
        }
    )


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _tuples(entry) for name, entry in value.items()}
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value
