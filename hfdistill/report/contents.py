"""What a report holds, as plain values: `analysis` fills it in, `markdown`, `page` and JSON show it.

Nothing here measures or draws. Shares are in [0, 1], never percent; times are seconds, sizes bytes, KL nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hfdistill.measurement import Latency

Kind = Literal["teacher", "control", "student"]


@dataclass(frozen=True)
class Score:
    """One metric of one model: over seeds, and as sure as the evaluation rows make it.

    Args:
        mean: over seeds.
        deviation: sample standard deviation over seeds; None for one seed.
        low: lower end of the bootstrap interval over evaluation rows; None where the predictions are not at hand.
        high: its upper end.
        seeds: how many.
    """

    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows whose confidence falls into one bin.

    Args:
        low: lower edge of the confidence.
        high: upper edge.
        rows: how many.
        confidence: their mean confidence; 0 where there is no row.
        accuracy: share of them that is right; 0 where there is no row.
    """

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


@dataclass
class ModelReport:
    """Everything found about one model.

    Args:
        name: "teacher", "control" or the arm's name.
        kind: what it is.
        scores: metric name -> Score, the report's own metric first.
        difference: to the control: (difference, low, high) of the report's metric, None where there is no control.
        retention: share of the teacher's metric.
        recovered_gap: share of the way from control to teacher; None without a control or a gap.
        agreement: with the teacher, mean over seeds.
        kl: KL(teacher || model), mean over seeds.
        calibration_error: expected calibration error (ECE), mean over seeds; None where there are no classes.
        reliability: bins of confidence, of the first seed.
        confusion: rows = true class, columns = predicted class, counts of the first seed; None where no classes.
        parameters: their number.
        bytes: size on disk for inference; None where no folder is at hand.
        flops: floating-point operations of one row, a multiply-add counted as 2; None where not counted.
        peak_memory: of inference at batch size 1 in a process of its own, beyond the process before loading.
        latencies: by runtime and batch size.
        curves: logged name ("loss", "loss/kd", "eval_accuracy", ...) -> steps and values, of the first seed.
        training_seconds: mean over seeds.
    """

    name: str
    kind: Kind
    scores: dict[str, Score]
    parameters: int
    difference: tuple[float, float, float] | None = None
    retention: float | None = None
    recovered_gap: float | None = None
    agreement: float | None = None
    kl: float | None = None
    calibration_error: float | None = None
    reliability: Sequence[ReliabilityBin] = ()
    confusion: Sequence[Sequence[int]] | None = None
    bytes: int | None = None
    flops: int | None = None
    peak_memory: int | None = None
    latencies: Sequence[Latency] = ()
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]] = field(default_factory=dict)
    training_seconds: float | None = None


@dataclass(frozen=True)
class Similarity:
    """How alike the layers of a student and of its teacher are.

    Args:
        student: name of the model.
        values: linear CKA (its unbiased estimate, which may lie slightly below 0), rows = student's layers from the
            embeddings on, columns = the teacher's.
        mapped: pairs (student layer, teacher layer) that its objective compared, if it did.
    """

    student: str
    values: Sequence[Sequence[float]]
    mapped: Sequence[tuple[int, int]] = ()


@dataclass
class Report:
    """A comparison of a teacher with its students.

    Args:
        title: of the page.
        metric: the one that stands for the task.
        models: the teacher first, then the control, then the students.
        label_names: of the classes, by index; empty for regression.
        similarities: one per student where models and rows are at hand.
        rows: number of evaluation rows behind scores, agreement and calibration.
        machine: where latencies and memory were measured: processor, threads, device.
        versions: package -> version.
        protocol: what was run, as the experiment noted it.
        notes: what is missing, and why, one sentence each.
    """

    title: str
    metric: str
    models: list[ModelReport]
    label_names: Sequence[str] = ()
    similarities: Sequence[Similarity] = ()
    rows: int = 0
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
