"""What the models can show of their attention, and what the objective learns beside the student: its projectors."""

from __future__ import annotations

from typing import Any

from hfdistill.anatomy import Anatomy, base_model
from hfdistill.checks.examination import Examination
from hfdistill.checks.findings import Finding, Findings
from hfdistill.losses.base import DistillationLoss
from hfdistill.losses.layerwise import LayerwiseLoss
from hfdistill.measurement import parameter_count
from hfdistill.representations import Needs


def examined_layers(examination: Examination) -> Findings:
    """Attention on both sides, then the trainable parts of each term."""
    ours, theirs = examination.objective.needs()
    found = Findings([_attention("student", examination.anatomy, examination.student, ours)])
    if examination.teacher is not None:
        found.append(_attention("teacher", examination.teacher.anatomy, examination.teacher_model, theirs))
    return Findings([*found, _projectors(examination)])


def _attention(role: str, anatomy: Anatomy, model: Any, needs: Needs) -> Finding:
    """How a model's attention can be seen, and which backend runs."""
    backend = "" if model is None else str(base_model(model).config._attn_implementation)  # type: ignore[union-attr]
    figures = {"model": role, "access": anatomy.attention, "backend": backend, "needed": bool(needs.attention_layers)}
    runs = f", and runs {backend}" if backend else ""
    if anatomy.attention == "none":
        return Finding("attention", "ok", f"the {role} ({anatomy.family}) has none, and none is needed.", "", figures)
    if anatomy.attention == "outputs":
        shown = f"the {role} ({anatomy.family}) shows attention probabilities only, under eager attention{runs}"
        if needs.attention_layers:
            message = f"{shown}: all of its layers run eager, which takes more memory and time than sdpa."
            return Finding("attention", "note", message, "Fewer tokens per row help most.", figures)
        return Finding("attention", "ok", f"{shown}; the objective needs none.", "", figures)
    if backend == "eager":
        message = f"the {role} runs eager attention, though its queries and keys can be seen under any backend."
        return Finding("attention", "note", message, "Load it with attn_implementation='sdpa': less memory.", figures)
    needed = f"layers {sorted(needs.attention_layers)} are needed" if needs.attention_layers else "none is needed"
    return Finding("attention", "ok", f"the {role} shows queries and keys{runs}; {needed}.", "", figures)


def _projectors(examination: Examination) -> Finding:
    """Which projector brings which layer of the student to which width of the teacher's."""
    rows = [row for name in examination.objective for row in _table(name, examination.objective[name])]
    total = parameter_count(examination.objective)
    student = parameter_count(examination.student)
    figures = {"projectors": rows, "parameters": total, "student_parameters": student}
    if not rows:
        return Finding("projectors", "ok", "the objective learns nothing beside the student.", figures=figures)
    listed = "; ".join(row["text"] for row in rows)
    message = f"the objective learns {total:,} parameters beside the student's {student:,}: {listed}."
    if total <= student:
        return Finding("projectors", "ok", message, figures=figures)
    advice = "Such a part can learn in the student's place; share projectors, or compare fewer layers."
    return Finding("projectors", "warning", f"{message} That is more than the student itself.", advice, figures)


def _table(name: str, loss: DistillationLoss) -> list[dict[str, Any]]:
    """One row per pair of layers with a projector, one for all other parameters of a loss."""
    rows: list[dict[str, Any]] = []
    counted = 0
    if isinstance(loss, LayerwiseLoss):
        for (ours, theirs), number in zip(loss.pairs, loss.projected_by, strict=False):
            projector: Any = loss.projectors[number]
            widths, count = (projector.student_width, projector.teacher_width), parameter_count(projector)
            if count:
                text = f"{name} layer {ours} -> {theirs}: {widths[0]} -> {widths[1]} ({count:,})"
                pair = {"student_layer": ours, "teacher_layer": theirs, "widths": list(widths)}
                rows.append({"loss": name, **pair, "parameters": count, "text": text})
        counted = parameter_count(loss.projectors)
    if rest := parameter_count(loss) - counted:
        rows.append({"loss": name, "parameters": rest, "text": f"{name}: {rest:,} of {type(loss).__name__}"})
    return rows
