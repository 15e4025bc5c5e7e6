"""A recipe's output folder without the training: toy models, their real predictions, and the records beside them.

The files are written by what writes them in an experiment, so that a change of their form is noticed. Nothing is
trained, and logs and times are made up.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from toy_models import image_inputs, text_inputs, toy_bert, toy_vit
from transformers import PreTrainedModel

from hfdistill.comparison import Comparison
from hfdistill.evaluation import write_tensors
from hfdistill.glue import METRICS
from hfdistill.measurement import Latency, parameter_count
from hfdistill.report import ArmResult, agreement, mean_kl, paired_bootstrap

ROWS = 48
CLASSES = 3
SPLIT = "validation"
LAYERS = [[0, 0], [1, 2], [2, 3]]


def write_output(
    folder: Path,
    arms: Sequence[str] = ("control", "kd"),
    seeds: Sequence[int] = (0, 1),
    kind: str = "image",
    label_seed: int = 0,
    **changes: Any,
) -> Comparison:
    """Write a whole output folder.

    Args:
        folder: OUT.
        arms: names, "control" among them or not.
        seeds: of each arm.
        kind: "image", "text", or "regression" (of text).
        label_seed: of the rows' labels.
        changes: fields of the Comparison that are to be others.
    """
    teacher, inputs = _model(kind, layers=3, width=16, seed=100), _inputs(kind, ROWS)
    teacher.save_pretrained(folder / "teacher")
    taught = _logits(teacher, inputs)
    labels = _labels(taught, kind, label_seed)
    write_tensors(folder / "evaluation.safetensors", {f"{SPLIT}/labels": labels, f"{SPLIT}/teacher_logits": taught})
    write_tensors(folder / "sample_batch.safetensors", _inputs(kind, 12))
    folders = {arm: [folder / arm / f"seed-{seed}" for seed in seeds] for arm in arms}
    runs: dict[str, list[np.ndarray]] = {arm: [] for arm in arms}
    for place, (arm, places) in enumerate(folders.items()):
        for seed, student_folder in zip(seeds, places, strict=True):
            student = _model(kind, layers=2, width=8, seed=10 * place + seed)
            runs[arm].append(_logits(student, inputs))
            write_student(student_folder, student, runs[arm][-1])
    own = _result("teacher", [taught], labels, taught, parameter_count(teacher))
    comparison = Comparison(
        metric="spearmanr" if kind == "regression" else "accuracy",
        teacher=replace(own, agreement=[], kl=[], seconds=[]),
        arms=_results(runs, labels, taught, parameter_count(student)),
        protocol={"data": {"name": "shapes"}, "seeds": list(seeds), "evaluation_rows": {SPLIT: ROWS}},
        folders={arm: [str(place) for place in places] for arm, places in folders.items()},
        labels=[] if kind == "regression" else ["circle", "square", "star"],
        teacher_folder=str(folder / "teacher"),
    )
    for name, value in changes.items():
        setattr(comparison, name, value)
    comparison.save(folder)
    comparison.save_beside_students()
    return comparison


def write_student(folder: Path, model: PreTrainedModel, logits: np.ndarray | None = None) -> None:
    """Write what a recipe leaves in a student's folder, without its results."""
    model.save_pretrained(folder)
    if logits is not None:
        write_tensors(folder / "predictions.safetensors", {SPLIT: logits})
    terms = [{"name": "hidden", "class": "HiddenStateLoss", "layers": LAYERS}, {"name": "kd", "layers": []}]
    kind = "Image" if model.main_input_name == "pixel_values" else "Sequence"
    record = {
        "teacher": None,
        "student": {
            "parameters": parameter_count(model),
            "auto_class": f"AutoModelFor{kind}Classification",
            "labels": [*model.config.id2label.values()],
        },
        "preset": "",
        "objective": terms,
        "arguments": {},
        "training": {},
        "evaluation": {"eval_loss": 0.7, "eval_accuracy": 0.75},
        "versions": {},
        "machine": "a machine",
    }
    log = [
        {"step": 5, "loss": 1.5, "loss/kd": 1.0, "learning_rate": 1e-4, "epoch": 0.5},
        {"step": 10, "eval_loss": 0.9, "eval_accuracy": 0.6, "eval_runtime": 2.0, "epoch": 1.0},
        {"step": 10, "loss": 1.2, "loss/kd": 0.8, "learning_rate": 0.0, "epoch": 1.0},
        {"step": 10, "train_runtime": 3.0, "train_loss": 1.35, "epoch": 1.0},
    ]
    for name, content in (("distillation.json", record), ("log_history.json", log)):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def write_onnx_record(folder: Path) -> Latency:
    """Write what an export leaves beside the student, without the export itself; its one latency comes back."""
    latency = {"runtime": "onnxruntime", "batch_size": 1, "seconds": 0.01, "repeats": [0.01, 0.02], "device": "cpu"}
    record = {"file": "model.onnx", "machine": "another", "latencies": [{**latency, "threads": 1}]}
    (folder / "onnx.json").write_text(json.dumps(record), encoding="utf-8")
    return Latency.from_record(record["latencies"][0])


def _model(kind: str, layers: int, width: int, seed: int) -> PreTrainedModel:
    if kind == "image":
        return toy_vit(layers=layers, width=width, classes=CLASSES, seed=seed)
    return toy_bert(layers=layers, width=width, classes=1 if kind == "regression" else CLASSES, seed=seed)


def _inputs(kind: str, rows: int) -> dict[str, torch.Tensor]:
    return image_inputs(rows) if kind == "image" else text_inputs(rows, tokens=9, shorter=1)


@torch.no_grad()
def _logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    return model(**inputs).logits.float().numpy()


def _labels(taught: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """What the teacher says, and something else in a quarter of the rows."""
    random = np.random.default_rng(seed)
    if kind == "regression":
        return (taught[:, 0] + random.normal(scale=taught.std(), size=ROWS)).astype(np.float32)
    wrong = random.random(ROWS) < 0.25
    return np.where(wrong, random.integers(0, CLASSES, ROWS), taught.argmax(axis=1))


def _scorer(metric: str):
    def score(logits: np.ndarray, labels: np.ndarray) -> float:
        return METRICS[metric](logits.argmax(axis=1) if logits.shape[1] > 1 else logits[:, 0], labels)

    return score


def _results(
    runs: dict[str, list[np.ndarray]], labels: np.ndarray, taught: np.ndarray, parameters: int
) -> list[ArmResult]:
    """All arms, with their difference to the control where there is one."""
    score = _scorer("accuracy" if taught.shape[1] > 1 else "spearmanr")
    found = []
    for arm, predicted in runs.items():
        result = _result(arm, predicted, labels, taught, parameters)
        if arm != "control" and "control" in runs:
            result.difference = paired_bootstrap(score, predicted, runs["control"], labels, samples=50)
        found.append(result)
    return found


def _result(arm: str, runs: list[np.ndarray], labels: np.ndarray, taught: np.ndarray, parameters: int) -> ArmResult:
    names = ["accuracy"] if taught.shape[1] > 1 else ["spearmanr", "pearson"]
    return ArmResult(
        name=arm,
        metrics=[{name: _scorer(name)(run, labels) for name in names} for run in runs],
        agreement=[agreement(run, taught) for run in runs],
        kl=[mean_kl(run, taught) for run in runs],
        difference=None,
        parameters=parameters,
        bytes=4 * parameters,
        samples_per_second=100.0,
        seconds=[3.0 for _ in runs],
        latencies=[Latency("torch", 1, 0.002, (0.002, 0.003), "cpu", 1)],
    )
