"""Models measured for a report: on their own inputs, and without losing the report where one cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from report.output_folder import LAYERS, write_output
from toy_models import image_inputs, toy_bert, toy_vit, with_lora
from transformers import ViTImageProcessor

from hfdistill.measurement import flops
from hfdistill.report import costs
from hfdistill.report.contents import ModelReport
from hfdistill.report.costs import measure
from hfdistill.report.folders import Outcome, read_outcome
from hfdistill.report.similarity import layer_similarity
from hfdistill.saved_model import load_saved


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write one output folder, which no test of this file may change."""
    folder = tmp_path_factory.mktemp("written")
    write_output(folder, seeds=(0,))
    return folder


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, tuple[int, ...]]]:
    """Start no process per model: note what its memory would be measured with."""
    found: list[tuple[Path, tuple[int, ...]]] = []

    def peak_memory(folder: Path, batch: dict[str, torch.Tensor], device: torch.device) -> int:
        found.append((Path(folder), tuple(next(iter(batch.values())).shape)))
        return 1000

    monkeypatch.setattr(costs, "peak_memory", peak_memory)
    monkeypatch.setattr(costs, "running_device", lambda: torch.device("cpu"))
    return found


def reports(outcome: Outcome) -> tuple[ModelReport, dict[str, ModelReport]]:
    """Make reports without figures, but with the latencies that the recipe measured."""
    arms = {arm.name: ModelReport(arm.name, "student", {}, 1, latencies=tuple(arm.latencies)) for arm in outcome.arms}
    return ModelReport("teacher", "teacher", {}, 1), arms


def test_every_model_is_measured_on_the_kept_inputs(output: Path, asked: list):
    """Operations, latency per size, memory of one row, layers against the teacher's, with the objective's pairs."""
    outcome = read_outcome(output)
    teacher, arms = reports(outcome)
    similarities = measure(outcome, teacher, arms, (1, 2))
    models = {"teacher": load_saved(output / "teacher"), "kd": load_saved(output / "kd" / "seed-0")}
    for name, report in {"teacher": teacher, **arms}.items():
        assert [latency.batch_size for latency in report.latencies] == [1, 2]
        assert report.peak_memory == 1000
        if name in models:
            assert report.flops == flops(models[name], outcome.batch)
    places = [output / "teacher", output / "control" / "seed-0", output / "kd" / "seed-0"]
    assert asked == [(place, (1, 3, 8, 8)) for place in places]
    assert [entry.student for entry in similarities] == ["control", "kd"]
    expected = layer_similarity(models["kd"], models["teacher"], outcome.batch)
    assert [list(line) for line in similarities[1].values] == expected
    assert similarities[1].mapped == tuple(tuple(pair) for pair in LAYERS)
    assert outcome.notes == []


def test_unknown_pairs_of_layers_are_noted(output: Path, tmp_path: Path):
    """A heat map without a mark says that the objective compared no layers."""
    shutil.copytree(output, tmp_path / "out")
    (tmp_path / "out" / "kd" / "seed-0" / "distillation.json").unlink()
    outcome = read_outcome(tmp_path / "out")
    _, similarity = measure(outcome, *reports(outcome), (1,))
    assert similarity.mapped == ()
    assert "the objective of 'kd' compared is not known" in outcome.notes[0]


def test_without_inputs_nothing_is_run(output: Path, asked: list):
    """Random inputs have other lengths, and attention another cost: no figure is better."""
    outcome = read_outcome(output)
    outcome.batch = None
    teacher, arms = reports(outcome)
    assert measure(outcome, teacher, arms, (1,)) == []
    assert (teacher.flops, arms["kd"].flops, asked) == (None, None, [])
    assert arms["kd"].latencies == tuple(outcome.arms[1].latencies)


def test_without_the_teachers_folder_the_students_are_measured(output: Path):
    """A teacher of the hub is not on every machine."""
    outcome = read_outcome(output)
    outcome.teacher_folder = None
    teacher, arms = reports(outcome)
    assert measure(outcome, teacher, arms, (1,)) == []
    assert (teacher.flops, arms["kd"].flops is None) == (None, False)
    assert "the teacher's folder is not here" in outcome.notes[0]


def test_a_model_that_fails_loses_only_itself(output: Path, tmp_path: Path):
    """One broken folder after hours of training: the other arms' figures, and the recorded ones, must stay."""
    shutil.copytree(output / "kd" / "seed-0", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").unlink()
    outcome = read_outcome(output)
    outcome.folders = {**outcome.folders, "kd": [tmp_path / "broken"]}
    teacher, arms = reports(outcome)
    assert [entry.student for entry in measure(outcome, teacher, arms, (1,))] == ["control"]
    assert arms["kd"].flops is None
    assert arms["kd"].latencies == tuple(outcome.arms[1].latencies)
    assert "the model of 'kd' could not be measured" in outcome.notes[0]
    assert "latencies of kd are those that the recipe measured" in outcome.notes[1]


def test_without_its_memory_a_model_is_measured(output: Path, monkeypatch: pytest.MonkeyPatch):
    """Only Linux shows the memory of a process; operations, latency and layers are the same everywhere."""

    def peak_memory(*arguments: object) -> int:
        raise OSError("this system lacks it")

    monkeypatch.setattr(costs, "peak_memory", peak_memory)
    outcome = read_outcome(output)
    teacher, arms = reports(outcome)
    assert len(measure(outcome, teacher, arms, (1,))) == 2
    assert (teacher.peak_memory, teacher.flops is None) == (None, False)
    assert [note.split(" could")[0].split(": ")[1] for note in outcome.notes] == [
        f"the memory of {name!r}" for name in ("teacher", "control", "kd")
    ]


def test_a_teacher_of_other_tokens_is_not_run_on_the_students(tmp_path: Path):
    """The ids mean other words to it: it would give figures, of noise."""
    write_output(tmp_path, arms=("kd",), seeds=(0,), kind="text")
    toy_bert(vocabulary=99).save_pretrained(tmp_path / "teacher")
    outcome = read_outcome(tmp_path)
    teacher, arms = reports(outcome)
    assert measure(outcome, teacher, arms, (1,)) == []
    assert (teacher.flops, arms["kd"].flops is None) == (None, False)
    assert "another vocabulary" in outcome.notes[0]


def save_processor(folder: Path, edge: int, mean: float) -> None:
    """Save an image processor for squares of this edge."""
    size = {"height": edge, "width": edge}
    ViTImageProcessor(size=size, image_mean=[mean] * 3, image_std=[0.5] * 3).save_pretrained(folder)


def test_a_teacher_gets_the_pixels_of_its_own_processor(tmp_path: Path, asked: list):
    """Other sizes fail, other means do not, and would make the teacher's layers those of images it never saw."""
    write_output(tmp_path, arms=("kd",), seeds=(0,))
    large = toy_vit(image_size=16)
    large.save_pretrained(tmp_path / "teacher")
    save_processor(tmp_path / "teacher", 16, mean=0.25)
    save_processor(tmp_path / "kd" / "seed-0", 8, mean=0.5)
    outcome = read_outcome(tmp_path)
    teacher, arms = reports(outcome)
    (similarity,) = measure(outcome, teacher, arms, (1,))
    assert asked[0] == (tmp_path / "teacher", (1, 3, 16, 16))
    pixels = outcome.batch["pixel_values"]
    enlarged = torch.nn.functional.interpolate(pixels, (16, 16), mode="bicubic", antialias=True)
    student = load_saved(tmp_path / "kd" / "seed-0")
    near = layer_similarity(student, large, outcome.batch, {"pixel_values": enlarged + 0.5})  # (0.5 - 0.25) / 0.5
    assert torch.tensor(similarity.values) == pytest.approx(torch.tensor(near), abs=0.05)  # but for what is clamped
    assert outcome.notes == []


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
def test_an_adapter_is_measured_merged(tmp_path: Path, asked: list):
    """That is how it is used; its folder alone is no model, and its small file no measure of what runs."""
    write_output(tmp_path, arms=("lora",), seeds=(0,))
    base = toy_vit(layers=2)
    base.save_pretrained(tmp_path / "base")
    folder = tmp_path / "lora" / "seed-0"
    for path in ("config.json", "model.safetensors"):
        (folder / path).unlink()
    adapted = with_lora(load_saved(tmp_path / "base"), ["q_proj"])
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(folder)
    outcome = read_outcome(tmp_path)
    teacher, arms = reports(outcome)
    measure(outcome, teacher, arms, (1,))
    assert outcome.notes == []
    assert arms["lora"].flops == flops(base, image_inputs(1))
    assert not asked[1][0].exists()  # the merged copy is gone
