"""Reports of invented figures, for the tests of the page: a rich one, a sparse one, and one with hostile names."""

from __future__ import annotations

import math

from hfdistill.measurement import Latency
from hfdistill.report.contents import ModelReport, ReliabilityBin, Report, Score, Similarity

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def rich_report() -> Report:
    """A teacher, a control and four students on ten classes, with everything that a page can show."""
    names = ("teacher", "control", "kd", "deit", "at", "rkd")
    models = [_model(name, position) for position, name in enumerate(names)]
    grid = [[math.exp(-abs(i / 3 - j / 6) * 2) for j in range(7)] for i in range(4)]
    return Report(
        title="CIFAR-10: ViT 6 x 128 to ViT 3 x 128",
        metric="accuracy",
        models=models,
        label_names=CLASSES,
        similarities=[Similarity("at", grid, ((1, 2), (2, 4), (3, 6))), Similarity("kd", grid)],
        rows=10_000,
        machine="AMD EPYC, 2 cores, 1 thread",
        versions={"hfdistill": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        protocol={"arms": {"kd": "kd"}, "seeds": [0, 1], "arguments": {"learning_rate": 0.001}},
        notes=("peak memory of deit was not measured: its process ended with an error.",),
    )


def sparse_report() -> Report:
    """A regression student alone: no classes, no latency, no teacher."""
    scores = {"spearmanr": Score(0.871, None, None, None, 1)}
    student = ModelReport("kd", "student", scores, 4_400_000)
    return Report("A student alone", "spearmanr", [student], notes=("there is no teacher beside it.",))


def hostile_report() -> Report:
    """Names that would break a page that does not escape them, or that are too long for it."""
    name = '<script>alert("x")</script> & $a_1$ ' + "very-long-name-" * 8
    report = rich_report()
    report.title = name
    report.models[2].name = name
    report.label_names = (name, *CLASSES[1:])
    report.protocol = {"note": "</pre><script>1</script>"}
    report.notes = (name,)
    return report


def _model(name: str, position: int) -> ModelReport:
    teacher, control = name == "teacher", name == "control"
    mean = (0.742, 0.655, 0.681, 0.674, 0.669, 0.663)[position]
    steps = list(range(0, 1000, 40))
    terms = ("loss",) if teacher or control else ("loss", "loss/task", f"loss/{name}")
    curves = {
        term: (steps, [2.3 * math.exp(-step / (300 + 40 * position)) + 0.6 + 0.02 * i for step in steps])
        for i, term in enumerate(terms)
    }
    bins = [
        ReliabilityBin(
            k / 10, (k + 1) / 10, 40 * k * k, (k + 0.5) / 10, min(1.0, (k + 0.5) / 10 * (0.9 + position / 50))
        )
        for k in range(10)
    ]
    return ModelReport(
        name=name,
        kind="teacher" if teacher else "control" if control else "student",
        scores={"accuracy": Score(mean, None if teacher else 0.004, mean - 0.009, mean + 0.009, 1 if teacher else 2)},
        parameters=1_200_000 if teacher else 620_000,
        difference=None if teacher or control else (mean - 0.655, mean - 0.655 - 0.011, mean - 0.655 + 0.011),
        retention=None if teacher else mean / 0.742,
        recovered_gap=None if teacher or control else (mean - 0.655) / (0.742 - 0.655),
        agreement=None if teacher else 0.7 + position / 100,
        kl=None if teacher else 0.61 - position / 20,
        calibration_error=0.04 + position / 100,
        reliability=bins,
        confusion=[[700 if i == j else (7 * i + 3 * j + position) % 60 for j in range(10)] for i in range(10)],
        bytes=4_800_000 if teacher else 2_500_000,
        flops=170_000_000 if teacher else 86_000_000,
        peak_memory=None if name == "deit" else 61_000_000,
        latencies=_latencies(name),
        curves=curves,
        training_seconds=None if teacher else 812.0 + 30 * position,
    )


def _latencies(name: str) -> list[Latency]:
    latencies = [
        Latency("torch", size, seconds * (1 if name == "teacher" else 0.52), (seconds,), "cpu", 1)
        for size, seconds in ((1, 0.0063), (8, 0.021), (32, 0.0744))
    ]
    if name == "kd":
        latencies.append(Latency("onnxruntime", 1, 0.0011, (0.0011,), "cpu", 1))
    return latencies
