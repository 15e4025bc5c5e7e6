"""What a report found, in one or two sentences that say no more than the figures do."""

from __future__ import annotations

from hfdistill.report.contents import ModelReport, Report
from hfdistill.report.figures import latency_at


def finding(report: Report) -> str:
    """The best student against its teacher and against the same student without distillation, in words."""
    metric, teacher = report.metric, next((model for model in report.models if model.kind == "teacher"), None)
    students = [model for model in report.models if model.kind == "student" and metric in model.scores]
    if not students:
        return "There is no distilled student with a score in this report."
    best = max(students, key=lambda model: model.scores[metric].mean)
    return " ".join(part for part in (_against_teacher(best, teacher, metric), _against_control(best)) if part)


def _against_teacher(best: ModelReport, teacher: ModelReport | None, metric: str) -> str:
    score = best.scores[metric].mean * 100
    if teacher is None or metric not in teacher.scores:
        return f"{best.name} reaches {score:.1f} % {metric}."
    shares = [f"{best.parameters / teacher.parameters * 100:.0f} % of its parameters"] if teacher.parameters else []
    ours, theirs = latency_at(best), latency_at(teacher)
    if ours is not None and theirs is not None and ours.batch_size == theirs.batch_size and theirs.seconds > 0:
        shares.append(f"{ours.seconds / theirs.seconds * 100:.0f} % of its time for {_rows(ours.batch_size)}")
    means = f", with {' and '.join(shares)}" if shares else ""
    return f"The teacher reaches {teacher.scores[metric].mean * 100:.1f} % {metric}, {best.name} {score:.1f} %{means}."


def _rows(count: int) -> str:
    return "one row" if count == 1 else f"a batch of {count}"


def _against_control(best: ModelReport) -> str:
    if best.difference is None:
        return ""
    gain, low, high = (value * 100 for value in best.difference)
    interval = f"[{low:+z.1f}, {high:+z.1f}]"
    if low > 0:
        return f"Distillation gains {gain:.1f} points over the same student without it {interval}."
    if high < 0:
        return f"The same student without distillation is {-gain:.1f} points better {interval}."
    return (
        f"Its difference to the same student without distillation, {gain:+z.1f} points {interval}, is within what "
        "other evaluation rows would change."
    )
