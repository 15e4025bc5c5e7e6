"""Reports from folders: one, several, students alone; what may stand in one table, and what is written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from report.output_folder import ROWS, SPLIT, write_onnx_record, write_output, write_student
from safetensors.numpy import load_file, save_file
from toy_models import toy_vit

from hfdistill.report import costs, scores
from hfdistill.report.analysis import analyse, write_report
from hfdistill.report.record import from_json, to_json


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw few resamples, and start no process per model."""
    monkeypatch.setattr(scores, "RESAMPLES", 20)
    monkeypatch.setattr(costs, "peak_memory", lambda folder, batch, device: 1000)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write one output folder, which no test of this file may change."""
    folder = tmp_path_factory.mktemp("written") / "out"
    write_output(folder)
    write_onnx_record(folder / "kd" / "seed-0")
    return folder


def test_a_report_of_one_experiment(output: Path):
    """Teacher, control and student, with everything that can be found out about them."""
    report = analyse([output], sizes=(1, 4))
    assert (report.title, report.metric, report.rows) == ("Distillation on shapes", "accuracy", ROWS)
    assert [(model.name, model.kind) for model in report.models] == [
        ("teacher", "teacher"),
        ("control", "control"),
        ("kd", "student"),
    ]
    assert report.label_names == ("circle", "square", "star")
    assert [entry.student for entry in report.similarities] == ["control", "kd"]
    assert report.protocol["data"] == {"name": "shapes"}
    assert set(report.versions) == {"hfdistill", "torch", "transformers", "python"}
    assert "torch thread" in report.machine
    assert [(x.runtime, x.batch_size) for x in report.models[2].latencies] == [
        ("torch", 1),
        ("torch", 4),
        ("onnxruntime", 1),
    ]
    assert all(model.flops and model.peak_memory and model.bytes for model in report.models)
    assert report.notes == ("out: latencies of 'kd' as ONNX were measured when it was exported (another).",)
    assert from_json(to_json(report)) == report


def test_without_measuring_the_recorded_figures_stand(output: Path):
    """Latencies are then the recipe's own, measured where it ran; that they are is said."""
    report = analyse([str(output)], measure=False)
    assert [x.seconds for x in report.models[1].latencies] == [0.002]
    assert (report.models[1].flops, report.models[1].peak_memory, report.similarities) == (None, None, ())
    assert report.machine == "a machine"
    assert any("Nothing was measured" in note for note in report.notes)
    assert report.models[1].scores == analyse([output], measure=False).models[1].scores  # the same resamples


def test_several_experiments_are_one_report(output: Path, tmp_path: Path):
    """The same teacher is one; names that occur twice are told apart by their folder; the controls stand together."""
    write_output(tmp_path / "more", arms=("control", "rkd", "kd"), seeds=(3,))
    report = analyse([output, tmp_path / "more"], measure=False)
    names = ["teacher", "out/control", "more/control", "out/kd", "rkd", "more/kd"]
    assert [model.name for model in report.models] == names
    assert report.models[4].recovered_gap != report.models[5].recovered_gap
    assert set(report.protocol) == {"out", "more"}
    assert report.title == "Distillation on shapes"


def test_similarities_bear_the_names_of_their_models(output: Path, tmp_path: Path):
    """A heat map under a name that two models have would be laid beside the wrong one."""
    write_output(tmp_path / "more", arms=("kd",), seeds=(3,))
    report = analyse([output, tmp_path / "more"], sizes=(1,))
    assert [entry.student for entry in report.similarities] == ["control", "out/kd", "more/kd"]
    assert {entry.student for entry in report.similarities} < {model.name for model in report.models}


def test_other_teachers_are_several(output: Path, tmp_path: Path):
    """Two experiments on the same rows with two teachers: each student was compared with its own."""
    write_output(tmp_path / "more", arms=("kd",), seeds=(0,))
    path = tmp_path / "more" / "evaluation.safetensors"
    arrays = load_file(path)
    save_file({**arrays, f"{SPLIT}/teacher_logits": arrays[f"{SPLIT}/teacher_logits"] + 1}, path)
    assert [model.name for model in analyse([output, tmp_path / "more"], measure=False).models[:2]] == [
        "out/teacher",
        "more/teacher",
    ]


def test_folders_of_the_same_name_are_told_apart(output: Path, tmp_path: Path):
    """Everybody calls the folder `out`: as many parts of the path as it takes are shown."""
    shutil.copytree(output, tmp_path / "other" / "out")
    report = analyse([output, tmp_path / "other" / "out"], measure=False)
    assert [model.name for model in report.models[1:]] == [
        f"{place.parent.name}/out/{arm}" for arm in ("control", "kd") for place in (output, tmp_path / "other" / "out")
    ]
    with pytest.raises(ValueError, match="one is there twice"):
        analyse([output, output / "." / "kd" / ".."], measure=False)


def test_figures_of_other_rows_are_not_compared(output: Path, tmp_path: Path):
    """88 % of one set and 86 % of another say nothing about each other, and a table would say they do."""
    write_output(tmp_path / "rows", arms=("kd",), seeds=(0,), label_seed=1)
    with pytest.raises(ValueError, match="out and rows were evaluated on other rows"):
        analyse([output, tmp_path / "rows"], measure=False)
    write_output(tmp_path / "names", arms=("kd",), seeds=(0,), labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="other rows"):
        analyse([output, tmp_path / "names"], measure=False)
    write_output(tmp_path / "metric", arms=("kd",), seeds=(0,), kind="regression")
    with pytest.raises(ValueError, match="by 'accuracy', metric by 'spearmanr'"):
        analyse([output, tmp_path / "metric"], measure=False)


def test_rows_that_are_not_known_are_noted(output: Path, tmp_path: Path):
    """Without labels nothing shows that the rows are the same; the reader must know."""
    shutil.copytree(output, tmp_path / "without")
    (tmp_path / "without" / "evaluation.safetensors").unlink()
    report = analyse([output, tmp_path / "without"], measure=False)
    assert any("evaluated on the same rows is not known" in note for note in report.notes)


def test_students_of_one_experiment_share_their_control(output: Path):
    """Each student's folder tells of the control; shown twice it would look like two runs."""
    report = analyse([output / "kd" / "seed-0", output / "control" / "seed-0"], measure=False)
    assert [model.name for model in report.models] == ["teacher", "control", "kd"]
    assert report.models[1].curves  # from the folder that holds the control itself
    alone = analyse([output / "kd" / "seed-1"], measure=False)
    assert [model.name for model in alone.models] == ["teacher", "control", "kd"]
    assert alone.models[1].curves == {}
    assert any("1 of the 2 seeds" in note for note in alone.notes)


def test_a_student_alone(tmp_path: Path):
    """From any folder of from_pretrained: size and cost; what is not there is said, nothing is made up."""
    write_student(tmp_path / "mine", toy_vit())
    (model,) = (report := analyse([tmp_path / "mine"], sizes=(1,))).models
    assert (model.name, model.kind, report.metric, report.title) == (
        "mine",
        "student",
        "accuracy",
        "Distillation on mine",
    )
    assert (model.retention, model.agreement, model.flops, model.latencies) == (None, None, None, ())
    assert len(report.notes) == 2
    assert model.bytes > 4 * model.parameters
    for record in ("distillation.json", "log_history.json"):
        (tmp_path / "mine" / record).unlink()
    plain = analyse([tmp_path / "mine"], measure=False)
    assert (plain.models[0].parameters, plain.models[0].scores, plain.metric) == (model.parameters, {}, "")
    assert from_json(to_json(plain)) == plain


def test_no_folder_is_refused():
    """An empty report would be written without a word."""
    with pytest.raises(ValueError, match="nothing to report on"):
        analyse([])


def test_a_report_is_written_in_three_forms(output: Path, tmp_path: Path):
    """One analysis, so that the three never differ."""
    pytest.importorskip("matplotlib")
    report = write_report([output], tmp_path / "new" / "folder", measure=False)
    files = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "new" / "folder").iterdir()}
    assert set(files) == {"report.md", "report.json", "report.html"}
    assert from_json(files["report.json"]) == report
    assert files["report.md"].startswith("# Distillation on shapes\n")
    assert "Distillation on shapes" in files["report.html"]
    json.loads(files["report.json"], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_figures_are_kept_where_the_page_cannot_be_drawn(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without matplotlib the measuring must not have been for nothing."""
    for name in [name for name in sys.modules if name.startswith("hfdistill.report.page")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hfdistill.report.page", None)
    with pytest.raises(ImportError):
        write_report([output], tmp_path, measure=False)
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "report.json"}
