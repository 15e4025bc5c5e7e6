"""A card tells what was measured, says what is missing, and is valid for the hub."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import Hub, complaints, reached, running_hub
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from toy_models import toy_bert, toy_vit, with_lora
from training_toys import image_rows, largest_difference, trainer_of, weights_of

from hfdistill import HiddenStateLoss, Objective, TaskLoss
from hfdistill.measurement import Latency
from hfdistill.publishing.card import is_draft, write_model_card
from hfdistill.publishing.record import RECORD
from hfdistill.report.results import ArmResult
from hfdistill.report.statistics import Interval


def arm(name: str, accuracies: list[float], difference: Interval | None = None) -> ArmResult:
    """A row of a comparison."""
    metrics = [{"accuracy": value, "test/accuracy": value - 0.01} for value in accuracies]
    seeds = [] if name == "teacher" else [0.5] * len(metrics)
    latency = Latency("torch", 8, 0.004, (0.004,), "cpu", 1)
    return ArmResult(name, metrics, seeds, seeds, difference, 1000, 4000, 250.0, seeds, latencies=[latency])


def results_of(*arms: ArmResult, seeds: tuple[int, ...] = (7, 42), **protocol: Any) -> dict[str, Any]:
    """A results.json as an experiment leaves it beside a student."""
    data = {"name": "toy_rows", "train_rows": 8, "evaluation_split": "validation"}
    told = {"seeds": list(seeds), "evaluation_rows": {"validation": 1000, "test": 500}, "data": data}
    told |= {"machine": "a toy processor, 1 thread", **protocol}
    teacher = asdict(arm("teacher", [0.9]))
    return {"metric": "accuracy", "teacher": teacher, "arms": [asdict(row) for row in arms], "protocol": told}


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """The student of seed 42 of the arm "kd", with all records beside it."""
    folder = tmp_path / "kd" / "seed-42"
    teacher = toy_bert(layers=4, seed=1)
    teacher.config.name_or_path = "me/big"
    trainer = trainer_of(folder, "kd", teacher=teacher)
    trainer.train()
    trainer.save_model()
    rows = (arm("control", [0.8, 0.81]), arm("kd", [0.85, 0.86], Interval(0.05, 0.01, 0.09)))
    (folder / "results.json").write_text(json.dumps(results_of(*rows)))
    onnx = {"latencies": [asdict(Latency("onnxruntime", 8, 0.002, (0.002,), "cpu", 1))]}
    (folder / "onnx.json").write_text(json.dumps(onnx))
    return folder


def test_the_card_shows_the_comparison(student: Path) -> None:
    """Teacher, control and student side by side, over seeds, are what makes a claim of distillation checkable."""
    card = write_model_card(student)
    assert card == (student / "README.md").read_text()
    assert re.search(r"\| teacher +\| +90\.0 \|", card)
    assert re.search(r"\| control +\| +80\.5 ± 0\.7 \|", card)
    assert re.search(r"\| kd +\| +85\.5 ± 0\.7 \| +\+5\.0 \[\+1\.0, \+9\.0\] \|", card)
    assert "accuracy of kd per seed (seeds 7, 42): 85.00, 86.00 %" in card
    assert "the weights here are those of seed 42" in card
    assert "1,000 (validation), 500 (test)" in card


def test_the_model_index_has_the_figures_of_these_weights(student: Path) -> None:
    """A mean over seeds, or the best of them, is not what who downloads this file will measure."""
    data = ModelCard(write_model_card(student)).data
    found = {(result.dataset_split, result.metric_type): result.metric_value for result in data.eval_results}
    assert found == {("validation", "accuracy"): 0.86, ("test", "accuracy"): 0.85}
    assert {(result.task_type, result.dataset_name) for result in data.eval_results} == {
        ("text-classification", "toy_rows")
    }


def test_without_knowing_which_seed_no_figure_is_claimed(student: Path) -> None:
    """A figure for the wrong weights is an invented one."""
    results = json.loads((student / "results.json").read_text())
    results["protocol"]["seeds"] = [1, 2]
    (student / "results.json").write_text(json.dumps(results))
    assert ModelCard(write_model_card(student)).data.eval_results is None


def test_latency_is_shown_with_what_it_was_measured_on(student: Path) -> None:
    """Milliseconds without a machine, a batch size and threads say nothing."""
    card = write_model_card(student)
    assert "Latency, median of warm passes on a toy processor, 1 thread" in card
    assert re.search(r"\| kd +\| torch +\| +8 \| +4\.00 \| +2000\.0 \| cpu +\| +1 \|", card)
    assert re.search(r"\| kd +\| onnxruntime +\| +8 \| +2\.00 \| +4000\.0 \| cpu +\| +1 \|", card)


def test_the_card_names_teacher_method_and_papers(student: Path) -> None:
    """Who uses the student owes the citation, and needs the teacher's terms."""
    card = write_model_card(student)
    assert "distilled by the method `kd` from [me/big](https://huggingface.co/me/big)" in card
    assert "@misc{hinton2015distilling," in card
    assert "author = {Hinton and Vinyals and Dean}" in card
    data = ModelCard(card).data
    assert (data.base_model, data["base_model_relation"], data.library_name) == ("me/big", "finetune", "transformers")
    assert {"knowledge-distillation", "hfdistill", "kd"} <= set(data.tags)
    assert data.license is None, "no record tells it"


def test_layers_are_shown_as_they_were_mapped(tmp_path: Path) -> None:
    """A rule's name says little without both depths."""
    objective = Objective(hidden=HiddenStateLoss(weight=0.5))
    trainer = trainer_of(tmp_path, objective)
    trainer.save_model()
    assert re.search(
        r"\| hidden \| HiddenStateLoss \| +0\.5 \| .*\| +0 from 0, 1 from 2, 2 from 4 +\|", write_model_card(tmp_path)
    )


def test_the_loading_lines_load_the_student(student: Path) -> None:
    """The lines that everybody copies are code, and code is run."""
    card = write_model_card(student)
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1].replace("path/to/this/folder", str(student)), names)
    assert largest_difference(weights_of(names["model"]), load_file(student / "model.safetensors")) == 0.0


def test_an_image_student_and_an_adapter_are_loaded_by_their_own_classes(tmp_path: Path) -> None:
    """AutoModel would load a body without its head, and an adapter is no model."""
    kinds = {"rows": image_rows(), "teacher": toy_vit(layers=3, seed=1)}
    trainer_of(tmp_path / "vit", "kd", toy_vit(), **kinds).save_model()
    card = write_model_card(tmp_path / "vit")
    assert "AutoModelForImageClassification.from_pretrained" in card
    assert ModelCard(card).data.pipeline_tag == "image-classification"
    trainer_of(tmp_path / "lora", "kd", with_lora(toy_bert(), ["query"])).save_model()
    card = write_model_card(tmp_path / "lora")
    assert 'PeftModel.from_pretrained(base, "path/to/this/folder")' in card
    assert "128 of them trained, as an adapter (LORA)" in card
    data = ModelCard(card).data
    assert data.library_name == "peft"
    assert data.base_model is None, "a base that was built in memory has no name"


def test_what_is_missing_is_said_and_not_made_up(tmp_path: Path) -> None:
    """A folder that somebody else saved has no records, and its card no claims."""
    toy_bert().save_pretrained(tmp_path / "plain")
    card = write_model_card(tmp_path / "plain")
    assert "How it was trained is not recorded" in card
    assert "No evaluation is recorded" in card
    for claim in ("teacher", "## Citation", "## How it was trained", "seed", "knowledge-distillation"):
        assert claim not in card, claim
    assert not complaints(card)


def test_the_trainers_own_evaluation_is_shown_where_nothing_was_compared(student: Path) -> None:
    """Without an experiment around it, this is all that was measured."""
    (student / "results.json").unlink()
    record = json.loads((student / RECORD).read_text())
    (student / RECORD).write_text(json.dumps({**record, "evaluation": {"eval_accuracy": 0.8125}}))
    card = write_model_card(student)
    assert "* accuracy: 0.8125" in card
    assert "It was not compared with its teacher" in card
    assert ModelCard(card).data.eval_results is None


def test_the_control_is_no_distilled_student(tmp_path: Path) -> None:
    """It is trained on labels alone, and a tag that says otherwise would mislead a search."""
    folder = tmp_path / "control" / "seed-42"
    trainer_of(folder, Objective(task=TaskLoss()), teacher=None).save_model()
    (folder / "results.json").write_text(json.dumps(results_of(arm("control", [0.8]), seeds=(42,))))
    card = write_model_card(folder)
    assert "without a teacher" in card
    assert "teacher's errors" not in card
    data = ModelCard(card).data
    assert data.tags == ["hfdistill"]
    assert data.eval_results[0].metric_value == 0.8
    assert "One seed was run" in card


def test_metadata_is_valid_and_survives_a_round_trip(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub reads the YAML, not the text: a key that stands twice, or a wrong type, and the card is refused."""
    card = write_model_card(student, license="mit", language="en", datasets=["me/rows"], tags=["mine", "kd"])
    block = card.split("---\n")[1]
    keys = re.findall(r"^[\w-]+:", block, re.MULTILINE)
    assert len(keys) == len(set(keys))
    data = ModelCard(card).data
    assert yaml.safe_load(data.to_yaml()) == yaml.safe_load(block)
    assert (data.license, data.language, data.datasets) == ("mit", "en", ["me/rows"])
    assert data.tags == ["knowledge-distillation", "hfdistill", "kd", "mine"]
    with running_hub() as hub, reached(hub.url, monkeypatch):
        ModelCard(card).validate()
        with pytest.raises(ValueError, match="base_model_relation"):
            ModelCard(card.replace("relation: finetune", "relation: distilled")).validate()
        assert isinstance(hub, Hub)
        assert hub.requests == ["POST /api/validate-yaml"] * 2


def test_a_base_model_must_be_a_name_on_the_hub(student: Path) -> None:
    """A path there is refused by the hub after everything else was done."""
    with pytest.raises(ValueError, match=r"base_model must be a name on the hub.*'/home/me/x'"):
        write_model_card(student, base_model="/home/me/x")
    assert ModelCard(write_model_card(student, base_model="you/base")).data.base_model == "you/base"


def test_an_edited_card_is_not_overwritten(student: Path) -> None:
    """What a person added must not be lost because a program ran again."""
    card = write_model_card(student, license="mit", model_name="My student")
    path = student / "README.md"
    for edited in (card + "A word of mine.\n", card.replace("license: mit", "license: apache-2.0"), "# Mine\n"):
        path.write_text(edited)
        assert write_model_card(student) == edited == path.read_text()
    anew = write_model_card(student, overwrite=True)
    assert is_draft(anew)
    assert "# Mine" not in anew


def test_an_unedited_card_is_written_anew_and_keeps_what_was_chosen(student: Path) -> None:
    """A license that was given once need not be given again with each new figure."""
    chosen: Any = {"license": "mit", "language": "en", "datasets": ["me/rows"], "tags": ["mine"]}
    write_model_card(student, model_name="My student", **chosen)
    (student / "results.json").unlink()
    card = write_model_card(student)
    assert "85.5" not in card
    assert "# My student" in card
    data = ModelCard(card).data
    assert (data.license, data.language, data.datasets) == ("mit", "en", ["me/rows"])
    assert "mine" in data.tags
    assert ModelCard(write_model_card(student, license="apache-2.0")).data.license == "apache-2.0"


@pytest.mark.parametrize("name", ["config.json", RECORD, "results.json"])
def test_a_broken_record_is_an_error(student: Path, name: str) -> None:
    """A card without the figures that are there, only unreadable, would look as if none had been measured."""
    (student / name).write_text('{"half": ')
    with pytest.raises(ValueError, match=rf"{name} is not valid JSON"):
        write_model_card(student)


def test_a_record_of_something_else_is_an_error(student: Path) -> None:
    """Any file may bear the name."""
    (student / RECORD).write_text('{"teacher": null}')
    with pytest.raises(ValueError, match=r"lacks \['arguments'.*Save the student again"):
        write_model_card(student)
