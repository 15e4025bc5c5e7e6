"""Folders read back: output folders, whole, moved and with gaps, and students' folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from report.output_folder import CLASSES, LAYERS, ROWS, SPLIT, write_onnx_record, write_output, write_student
from safetensors.numpy import save_file
from toy_models import toy_vit

from hfdistill.report.folders import exported_latencies, mapped_layers, read_outcome, training_log


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write one output folder, which no test of this file may change."""
    folder = tmp_path_factory.mktemp("written") / "out"
    write_output(folder)
    return folder


def test_an_output_folder_is_read_whole(output: Path):
    """What an experiment wrote, by the names that the report uses."""
    found = read_outcome(output)
    assert (found.name, found.metric, found.split, found.notes) == ("out", "accuracy", SPLIT, [])
    assert found.teacher is not None
    assert found.teacher.name == "teacher"
    assert [arm.name for arm in found.arms] == ["control", "kd"]
    assert found.labels == ("circle", "square", "star")
    assert found.protocol["data"] == {"name": "shapes"}
    assert found.folders["kd"] == [output / "kd" / "seed-0", output / "kd" / "seed-1"]
    assert found.teacher_folder == output / "teacher"
    assert found.evaluation[SPLIT].shape == (ROWS,)
    assert found.teacher_logits[SPLIT].shape == (ROWS, CLASSES)
    assert found.batch is not None
    assert found.batch["pixel_values"].shape == (12, 3, 8, 8)
    assert [run[SPLIT].shape for run in found.predictions("kd")] == [(ROWS, CLASSES)] * 2


def test_a_folder_that_was_moved_is_read_at_its_new_place(output: Path, tmp_path: Path):
    """results.json holds the paths of before; there another run may lie by now."""
    shutil.copytree(output, tmp_path / "moved")
    found = read_outcome(tmp_path / "moved", "mine")
    assert found.name == "mine"
    assert found.folders["kd"][1] == tmp_path / "moved" / "kd" / "seed-1"
    assert found.teacher_folder == output / "teacher"  # the teacher was given, so it stays where it was
    shutil.move(output / "teacher", output / "gone")
    try:
        assert read_outcome(tmp_path / "moved").teacher_folder == tmp_path / "moved" / "teacher"
    finally:
        shutil.move(output / "gone", output / "teacher")


def test_seeds_keep_the_order_of_the_results(tmp_path: Path):
    """Predictions are held against the metric of the same seed: seed-10 sorts before seed-2."""
    write_output(tmp_path, arms=("kd",), seeds=(2, 10))
    assert [folder.name for folder in read_outcome(tmp_path).folders["kd"]] == ["seed-2", "seed-10"]


def test_results_of_an_earlier_version_are_read(output: Path, tmp_path: Path):
    """They named one folder per arm, or none, and neither classes nor the teacher's folder."""
    shutil.copytree(output, tmp_path / "old")
    path = tmp_path / "old" / "results.json"
    content = json.loads(path.read_text())
    for name in ("labels", "teacher_folder", "folders"):
        del content[name]
    path.write_text(json.dumps(content))
    found = read_outcome(tmp_path / "old")
    assert found.labels == ()
    assert [folder.name for folder in found.folders["kd"]] == ["seed-0", "seed-1"]
    path.write_text(json.dumps({**content, "folders": {"kd": str(tmp_path / "old" / "kd" / "seed-1")}}))
    assert [folder.name for folder in read_outcome(tmp_path / "old").folders["kd"]] == ["seed-1"]


def test_what_is_missing_is_noted(output: Path, tmp_path: Path):
    """A report with gaps must say that they are gaps, and of what."""
    shutil.copytree(output, tmp_path / "out")
    (tmp_path / "out" / "evaluation.safetensors").unlink()
    (tmp_path / "out" / "sample_batch.safetensors").unlink()
    content = json.loads((output / "results.json").read_text())
    content["folders"]["kd"] = ["elsewhere"]
    (tmp_path / "out" / "results.json").write_text(json.dumps(content))
    shutil.rmtree(tmp_path / "out" / "kd")
    found = read_outcome(tmp_path / "out")
    assert (found.folders["kd"], found.evaluation, found.batch, found.split) == ([], {}, None, None)
    for note, words in zip(found.notes, ("of the arm 'kd'", "no evaluation", "no sample_batch"), strict=True):
        assert words in note


def test_the_split_of_the_table_comes_first(output: Path, tmp_path: Path):
    """A safetensors file sorts its names; the figures of the table are those of the first split of the experiment."""
    shutil.copytree(output, tmp_path / "out")
    results = json.loads((output / "results.json").read_text())
    results["protocol"]["evaluation_rows"] = {SPLIT: ROWS, "another": 5}
    (tmp_path / "out" / "results.json").write_text(json.dumps(results))
    labels = {f"{SPLIT}/labels": np.zeros(ROWS), "another/labels": np.zeros(5), "a third/labels": np.zeros(2)}
    save_file(labels, tmp_path / "out" / "evaluation.safetensors")
    assert list(read_outcome(tmp_path / "out").evaluation) == [SPLIT, "another", "a third"]


def test_predictions_of_other_rows_are_refused(output: Path, tmp_path: Path):
    """Scored against labels of other rows they would give a figure, and a wrong one."""
    shutil.copytree(output, tmp_path / "out")
    save_file({SPLIT: np.zeros((ROWS - 1, CLASSES))}, tmp_path / "out" / "kd" / "seed-1" / "predictions.safetensors")
    with pytest.raises(ValueError, match=f"expected {ROWS} rows of 'validation' in .*, got {ROWS - 1}"):
        read_outcome(tmp_path / "out").predictions("kd")


def test_a_students_folder_knows_the_comparison_that_it_is_part_of(output: Path):
    """Beside a student lie its results with teacher and control; rows and inputs lie two folders above."""
    found = read_outcome(output / "kd" / "seed-1")
    assert [arm.name for arm in found.arms] == ["control", "kd"]
    assert found.folders == {"kd": [output / "kd" / "seed-1"]}
    assert found.evaluation[SPLIT].shape == (ROWS,)
    assert found.batch is not None
    assert found.teacher_folder == output / "teacher"
    control = read_outcome(output / "control" / "seed-0")
    assert control.folders == {"control": [output / "control" / "seed-0"]}


def test_a_student_alone_is_read(tmp_path: Path):
    """Trained without an experiment, it has neither teacher nor labels; inputs may lie beside it."""
    write_student(tmp_path / "mine", toy_vit())
    found = read_outcome(tmp_path / "mine")
    assert (found.teacher, found.arms, found.metric) == (None, [], "")
    assert found.folders == {"mine": [tmp_path / "mine"]}
    assert len(found.notes) == 1
    save_file({"pixel_values": np.zeros((2, 3, 8, 8), np.float32)}, tmp_path / "mine" / "sample_batch.safetensors")
    found = read_outcome(tmp_path / "mine")
    assert torch.equal(found.batch["pixel_values"], torch.zeros(2, 3, 8, 8))
    assert found.notes == []


def test_records_beside_a_student(tmp_path: Path):
    """Layer pairs of all terms once each, the log, an export's latencies; empty where there are none."""
    assert (mapped_layers(tmp_path), training_log(tmp_path), exported_latencies(tmp_path)) == ([], [], ([], ""))
    write_student(tmp_path, toy_vit())
    assert mapped_layers(tmp_path) == [tuple(pair) for pair in LAYERS]
    assert len(training_log(tmp_path)) == 4
    assert exported_latencies(tmp_path) == ([], "")
    latency = write_onnx_record(tmp_path)
    assert exported_latencies(tmp_path) == ([latency], "another")


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    """A wrong path is the usual cause, a broken-off recipe the next; both must be told."""
    with pytest.raises(ValueError, match="no such folder"):
        read_outcome(tmp_path / "nowhere")
    (tmp_path / "teacher").mkdir()
    with pytest.raises(ValueError, match=r"\['teacher'\].*run it again"):
        read_outcome(tmp_path)
    (tmp_path / "results.json").write_text('{"metric": "accuracy"}')
    with pytest.raises(ValueError, match="found no 'teacher'"):
        read_outcome(tmp_path)
    (tmp_path / "results.json").write_text('{"metric": ')
    with pytest.raises(ValueError, match="is not JSON"):
        read_outcome(tmp_path)
