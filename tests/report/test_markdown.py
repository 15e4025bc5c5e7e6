"""A report as Markdown: every figure in its unit, and no section without data."""

from __future__ import annotations

from hfdistill.measurement import Latency
from hfdistill.report.contents import ModelReport, Report, Score, Similarity
from hfdistill.report.markdown import as_markdown


def cells(text: str, heading: str) -> list[list[str]]:
    """Read the first table of a section, without the rule below the names."""
    section = text.split(f"## {heading}\n\n")[1].split("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines()]
    return [lines[0], *lines[2:]]


def full() -> Report:
    """Make a report of a teacher and a student."""
    teacher = ModelReport("teacher", "teacher", {"accuracy": Score(0.9, None, 0.85, 0.95, 1)}, 2_000_000)
    student = ModelReport(
        name="k|d",
        kind="student",
        scores={"accuracy": Score(0.86, 0.0041, 0.8, 0.91, 3), "f1": Score(0.5, None, None, None, 1)},
        parameters=1_000_000,
        difference=(0.012, -0.003, 0.02),
        retention=0.9556,
        recovered_gap=0.4,
        agreement=0.93,
        kl=0.1234,
        calibration_error=0.021,
        confusion=((9, 1), (3, 7)),
        bytes=4_200_000,
        flops=1_500_000_000,
        peak_memory=80_400_000,
        latencies=(Latency("torch", 8, 0.02, (0.02,), "cpu", 2),),
        curves={"loss/kd": ((1, 2), (0.5, 0.25))},
        training_seconds=61.2,
    )
    return Report(
        title="Distillation on shapes",
        metric="accuracy",
        models=[teacher, student],
        label_names=("cat", "dog"),
        similarities=(Similarity("k|d", ((0.5, 0.25), (0.125, -0.004)), ((1, 1),)),),
        rows=1000,
        machine="a machine",
        versions={"torch": "2.13"},
        protocol={"seeds": [0], "arguments": {"weight_decay": 0.125}},
        notes=("no ONNX",),
    )


def test_scores_in_their_units():
    """Percent and points as in results.md, dashes where there is nothing."""
    header, teacher, student = cells(as_markdown(full()), "Scores")
    assert header[1:4] == ["accuracy", "difference to control", "retention"]
    assert header[4:] == ["recovered gap", "agreement", "KL", "calibration error"]
    assert teacher == ["teacher", "90.0 [85.0, 95.0]", *["–"] * 6]
    assert student[1:4] == ["86.0 ± 0.4 [80.0, 91.0]", "+1.2 [-0.3, +2.0]", "95.6"]
    assert student[4:] == ["40.0", "93.0", "0.123", "2.1"]
    assert "over 1,000 evaluation rows" in as_markdown(full())


def test_costs_and_latencies_in_their_units():
    """MB of 10^6 bytes, milliseconds per batch, rows per second."""
    header, teacher, student = cells(as_markdown(full()), "Cost")
    assert header == ["model", "parameters", "size MB", "GFLOPs per row", "peak memory MB", "training s"]
    assert teacher == ["teacher", "2,000,000", "–", "–", "–", "–"]
    assert student == [r"k\|d", "1,000,000", "4.2", "1.5", "80", "61"]
    assert cells(as_markdown(full()), "Latency")[1] == [r"k\|d", "torch", "cpu", "2", "8", "20.00", "400.0"]


def test_mistakes_metrics_losses_and_layers():
    """The rest of the figures: named classes, other metrics, where each loss ended, marked pairs of layers."""
    text = as_markdown(full())
    assert cells(text, "Most confused classes")[1:] == [[r"k\|d", "dog", "cat", "3"], [r"k\|d", "cat", "dog", "1"]]
    assert cells(text, "Other metrics") == [["model", "f1"], ["teacher", "–"], [r"k\|d", "50.0"]]
    assert cells(text, "End of training") == [["model", "loss/kd"], [r"k\|d", "0.25"]]
    similarity = cells(text, "Layer similarity of k|d and its teacher")
    assert similarity == [["layer", "0", "1"], ["0", "0.50", "0.25"], ["1", "0.12", "-0.00 *"]]
    assert "- no ONNX" in text
    assert "torch 2.13" in text
    assert "a machine" in text
    assert '"seeds"' in text
    assert "weight_decay" not in text  # a hundred of these would bury the rest


def test_sections_without_data_are_left_out():
    """A heading over nothing reads as a fault of the report."""
    bare = Report("Distillation on mine", "", [ModelReport("mine", "student", {}, 10)])
    assert as_markdown(bare).splitlines() == [
        "# Distillation on mine",
        "",
        "## Cost",
        "",
        "| model | parameters |",
        "| ----- | ---------: |",
        "| mine  |         10 |",
    ]
