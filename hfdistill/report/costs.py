"""What saved models cost and how alike their layers are to the teacher's: here models are loaded and run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, PreTrainedModel

from hfdistill.anatomy import Anatomy
from hfdistill.images.pixels import ImageShape, PixelConversion, PixelStandard
from hfdistill.measurement import flops, latencies
from hfdistill.peak_memory import peak_memory
from hfdistill.publishing.folder import StudentFolder
from hfdistill.publishing.merging import merged_student
from hfdistill.report.contents import ModelReport, Similarity
from hfdistill.report.folders import Outcome, distillation_record, mapped_layers
from hfdistill.report.results import CONTROL
from hfdistill.report.similarity import layer_similarity
from hfdistill.saved_model import ADAPTER, load_saved

_FAILURES = (ValueError, RuntimeError, OSError, IndexError, TypeError, KeyError)
"""What a model raises of inputs that it was not made for, and a folder that is not whole; anything else is a bug."""


def running_device() -> torch.device:
    """Where models are measured: the GPU where torch sees one, or else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measure(
    outcome: Outcome, teacher: ModelReport | None, arms: Mapping[str, ModelReport], sizes: Sequence[int]
) -> list[Similarity]:
    """Measure teacher and arms on the outcome's batch, each arm by its first seed's model.

    What cannot be measured stays None, and the outcome notes why.

    Args:
        outcome: what a folder tells.
        teacher: to be filled in.
        arms: arm -> to be filled in.
        sizes: of the batches that are timed.

    Returns:
        Layer similarity of each arm's model with the teacher, the control's included.
    """
    if outcome.batch is None:
        return []
    folders = {arm: outcome.folders[arm][0] for arm in arms if outcome.folders.get(arm)}
    reference = None if teacher is None else _reference(outcome, teacher, next(iter(folders.values()), None), sizes)
    found = []
    for arm, folder in folders.items():
        with _noting(outcome, f"the model of {arm!r}"), _merged(folder) as whole:
            model = load_saved(whole)
            _fill(outcome, arms[arm], model, whole, outcome.batch, sizes)
            if reference is not None:
                values = layer_similarity(model, reference[0], outcome.batch, reference[1])
                found.append(Similarity(arm, tuple(tuple(line) for line in values), tuple(mapped_layers(folder))))
                if arm != CONTROL and not distillation_record(folder):
                    outcome.notes.append(
                        f"{outcome.name}: which layers the objective of {arm!r} compared is not known."
                    )
    reports = [*arms.values()] if teacher is None else [teacher, *arms.values()]
    if recorded := [report.name for report in reports if report.latencies and report.flops is None]:
        outcome.notes.append(f"{outcome.name}: latencies of {', '.join(recorded)} are those that the recipe measured.")
    return found


def _reference(
    outcome: Outcome, teacher: ModelReport, student_folder: Path | None, sizes: Sequence[int]
) -> tuple[PreTrainedModel, dict[str, Tensor]] | None:
    """The teacher, measured, and its inputs; None where it or they cannot be had."""
    folder = outcome.teacher_folder
    if folder is None or outcome.batch is None:
        outcome.notes.append(
            f"{outcome.name}: the teacher's folder is not here, so that its operations, latency and memory are not "
            "measured, nor how alike layers are to its own."
        )
        return None
    with _noting(outcome, "the teacher"):
        model = load_saved(folder)
        inputs = _teacher_inputs(model, folder, outcome.batch, student_folder)
        _fill(outcome, teacher, model, folder, inputs, sizes)
        return model, inputs
    return None


def _fill(
    outcome: Outcome,
    report: ModelReport,
    model: PreTrainedModel,
    folder: Path,
    batch: Mapping[str, Tensor],
    sizes: Sequence[int],
) -> None:
    device = running_device()
    nn.Module.to(model, device)
    report.flops = flops(model, batch)
    report.latencies = tuple(latencies(model, batch, sizes))
    with _noting(outcome, f"the memory of {report.name!r}"):  # not every system shows it
        report.peak_memory = peak_memory(folder, {name: x[:1] for name, x in batch.items()}, device)


@contextmanager
def _merged(folder: Path) -> Iterator[Path]:
    """The folder of a whole model: an adapter is merged into its base, in a folder that is removed afterwards."""
    if not (folder / ADAPTER).is_file():
        yield folder
        return
    with TemporaryDirectory() as scratch:
        yield merged_student(StudentFolder.read(folder), scratch).path


def _teacher_inputs(
    teacher: PreTrainedModel, folder: Path, batch: Mapping[str, Tensor], student_folder: Path | None
) -> dict[str, Tensor]:
    """The students' inputs as the teacher takes them: pixels by its own processor, tokens only if they are its own."""
    anatomy = Anatomy.of(teacher)
    known = {name: x for name, x in batch.items() if name in anatomy.input_names}
    if "pixel_values" in known:
        processors = [place and place / "preprocessor_config.json" for place in (student_folder, folder)]
        if all(path is not None and path.is_file() for path in processors):
            ours, theirs = (_processor(path.parent) for path in processors if path)
            channels = ImageShape.of(teacher).channels or 3
            student = PixelStandard.of(ours, batch["pixel_values"].shape[1])
            known["pixel_values"] = PixelConversion(student, PixelStandard.of(theirs, channels))(batch["pixel_values"])
    elif student_folder is not None and Anatomy.of(load_saved(student_folder)).vocabulary != anatomy.vocabulary:
        raise ValueError("it has another vocabulary than the students, whose tokens mean nothing to it.")
    return known


def _processor(folder: Path) -> Any:
    return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)  # type: ignore[no-untyped-call]


@contextmanager
def _noting(outcome: Outcome, subject: str) -> Iterator[None]:
    """Note a failure instead of losing the rest of the report."""
    try:
        yield
    except _FAILURES as error:
        reason = " ".join(str(error).split())[:300]
        outcome.notes.append(f"{outcome.name}: {subject} could not be measured on the kept inputs: {reason}")
