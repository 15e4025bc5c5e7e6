"""What a trainer knows is recorded as it was, and nothing of the machine or the login with it."""

import json
from pathlib import Path
from typing import Any

import pytest
from toy_models import toy_bert, with_lora
from training_toys import text_rows, trainer_of
from transformers import AutoModelForSequenceClassification

from hfdistill import HiddenStateLoss, Linear, Objective, SoftTargetLoss, TaskLoss, preset
from hfdistill.publishing.record import is_repository_name, training_record, without_folders

TOKEN = "hf_SecretOfThisTest"


def recorded(folder: Path, objective: Any = "kd", **changes: Any) -> dict[str, Any]:
    """The record of a toy trainer before it trains."""
    return training_record(trainer_of(folder, objective, **changes))


def test_the_objective_is_recorded_as_it_runs(tmp_path: Path) -> None:
    """Weight, temperature and layers are what a reader needs to do it again; the layers as resolved, not as a rule."""
    objective = Objective(
        kd=SoftTargetLoss(temperature=2.0, weight=Linear(1.0, 0.0)), hidden=HiddenStateLoss("uniform", weight=0.5)
    )
    first, second = recorded(tmp_path, objective)["objective"]
    assert (first["name"], first["class"], first["layers"]) == ("kd", "SoftTargetLoss", [])
    assert first["weight"] == "Linear(start=1.0, end=0.0, begin=0.0, finish=1.0)"
    assert first["options"]["temperature"] == 2.0
    assert first["papers"][0]["link"] == "https://arxiv.org/abs/1503.02531"
    assert (second["weight"], second["options"]["layers"]) == (0.5, "uniform")
    assert second["layers"] == [[0, 0], [1, 2], [2, 4]]


def test_a_preset_is_named_however_it_was_given(tmp_path: Path) -> None:
    """The method's name is what people search for."""
    for objective in ("tinybert", {"preset": "tinybert"}, preset("tinybert")):
        assert recorded(tmp_path, objective)["preset"] == "tinybert"
    assert recorded(tmp_path, Objective(task=TaskLoss()), teacher=None)["preset"] == ""


def test_sizes_leave_out_what_only_training_needs(tmp_path: Path) -> None:
    """Projectors hang on the student while it trains, and are not in what is saved."""
    student, teacher = toy_bert(width=8), toy_bert(layers=4, seed=1)
    trainer = trainer_of(tmp_path, Objective(hidden=HiddenStateLoss()), student, teacher=teacher)
    plain = student.num_parameters()
    with trainer._attached():
        assert student.num_parameters() > plain
        record = training_record(trainer)
    assert record["student"]["parameters"] == record["student"]["trained_parameters"] == plain
    assert (record["teacher"]["parameters"], record["teacher"]["trained_parameters"]) == (teacher.num_parameters(), 0)
    assert record["student"]["auto_class"] == "AutoModelForSequenceClassification"
    assert record["student"]["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_an_adapter_is_recorded_with_its_configuration(tmp_path: Path) -> None:
    """Rank and targets are hyper-parameters of the method."""
    record = recorded(tmp_path, student=with_lora(toy_bert(), ["query"]))
    adapter = record["student"]["adapter"]
    assert (adapter["peft_type"], adapter["r"], adapter["target_modules"]) == ("LORA", 2, ["query"])
    assert 0 < record["student"]["trained_parameters"] < record["student"]["parameters"]
    assert "peft" in record["versions"]


def test_models_are_named_without_their_folders(tmp_path: Path) -> None:
    """A card tells who taught; where it lay is nobody's business, and a name on the hub must not be made up."""
    toy_bert(layers=4, seed=1).save_pretrained(tmp_path / "big")
    given = AutoModelForSequenceClassification.from_pretrained(tmp_path / "big")
    for teacher in (str(tmp_path / "big"), given):
        record = recorded(tmp_path, teacher=teacher)
        assert (record["teacher"]["name"], record["teacher"]["place"]) == ("big", "folder")
    assert record["student"]["base_model"] == {"name": "", "place": "memory"}
    given.config.name_or_path = "me/big"
    record = recorded(tmp_path, teacher=given)
    assert (record["teacher"]["name"], record["teacher"]["place"]) == ("me/big", "hub")


def test_a_relative_folder_is_not_taken_for_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder outputs/teacher could be a repository; the hub would link the student to a stranger's model."""
    monkeypatch.chdir(tmp_path)
    toy_bert(layers=4, seed=1).save_pretrained("outputs/teacher")
    record = recorded(tmp_path, teacher="outputs/teacher")
    assert (record["teacher"]["name"], record["teacher"]["place"]) == ("teacher", "folder")


def test_neither_token_nor_folder_is_recorded(tmp_path: Path) -> None:
    """The record is published beside the student."""
    record = recorded(tmp_path, hub_token=TOKEN, hub_model_id="me/x", run_name="/home/me/secret/run")
    text = json.dumps(record)
    assert TOKEN not in text
    assert str(tmp_path) not in text
    assert "/home" not in text
    assert not [name for name in record["arguments"] if name.startswith("hub_") or name.endswith("_token")]
    assert record["arguments"]["learning_rate"] == 0.1


def test_the_run_is_recorded_with_what_was_logged(tmp_path: Path) -> None:
    """Figures come from the log and from nowhere else; NaN, which JSON has not, becomes none."""
    trainer = trainer_of(tmp_path, "kd", gradient_accumulation_steps=2, max_steps=1)
    assert training_record(trainer)["training"]["seconds"] is None
    trainer.train()
    training, last = training_record(trainer)["training"], trainer.state.log_history[-1]
    assert (training["rows"], training["steps"], training["batch_size"], training["seed"]) == (8, 1, 8, 42)
    assert (training["seconds"], training["train_loss"]) == (last["train_runtime"], last["train_loss"])
    last["train_loss"] = float("nan")
    assert training_record(trainer)["training"]["train_loss"] is None


def test_only_the_evaluation_of_these_weights_is_recorded(tmp_path: Path) -> None:
    """The last evaluation may be another step's: its figure would be claimed for weights that never had it."""
    quiet = {"eval_dataset": text_rows(), "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    trainer = trainer_of(tmp_path, "kd", **quiet)
    trainer.train()
    last = trainer.evaluate()
    assert training_record(trainer)["evaluation"] == {"eval_loss": last["eval_loss"]}
    trainer.state.global_step += 1  # as in the middle of training, a step after an evaluation
    assert training_record(trainer)["evaluation"] == {}


def test_of_the_best_model_the_best_evaluation_is_recorded(tmp_path: Path) -> None:
    """load_best_model_at_end puts other weights in place than those of the last step."""
    saving = {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True, "greater_is_better": True}
    quiet = {"eval_dataset": text_rows(), "eval_strategy": "steps", "eval_steps": 1, "max_steps": 3}
    trainer = trainer_of(tmp_path, "kd", metric_for_best_model="eval_loss", **saving, **quiet)
    trainer.train()
    losses = {line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line}
    assert trainer.state.best_global_step != 3, "the toy run should get better, so that its worst step comes first"
    assert training_record(trainer)["evaluation"]["eval_loss"] == losses[trainer.state.best_global_step]


def test_a_teacher_that_is_no_model_is_recorded_by_its_class(tmp_path: Path) -> None:
    """An ensemble or a server has neither a name nor parameters that could be counted."""

    class Distant:
        def __init__(self, inner: Any) -> None:
            self.inner, self.anatomy = inner, inner.anatomy

        def prepare(self, device: Any) -> None:
            self.inner.prepare(device)

        def represent(self, inputs: Any, needs: Any) -> Any:
            return self.inner.represent(inputs, needs)

    from hfdistill import FrozenTeacher

    record = recorded(tmp_path, teacher=Distant(FrozenTeacher(toy_bert(layers=4, seed=1))))
    assert record["teacher"] == {"name": "", "place": "memory", "class": "Distant", "parameters": 0}


def test_folders_are_cut_from_values_and_other_text_stays() -> None:
    """A rule that cut too much would change what it records."""
    given = {"a": "/home/me/x.json", "b": ["C:\\Users\\me\\x.csv", 1, None], "c": "{'config': '/etc/ds/z3.json'}"}
    assert without_folders(given) == {"a": "x.json", "b": ["x.csv", 1, None], "c": "{'config': 'z3.json'}"}
    for text in ("https://arxiv.org/abs/1503.02531", "me/student", "and/or", "cosine", "1/2 of it", "data/train.csv"):
        assert without_folders(text) == text


@pytest.mark.parametrize(
    ("name", "valid"), [("me/x", True), ("x", True), ("", False), ("/x", False), ("a/b/c", False)]
)
def test_names_of_repositories(name: str, valid: bool) -> None:
    """The hub refuses a card whose base_model is none."""
    assert is_repository_name(name) == valid
