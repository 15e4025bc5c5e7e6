"""What an experiment leaves behind, and that it is what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor
from toy_models import toy_bert, with_lora
from training_toys import arguments, collate, text_rows
from transformers import AutoModelForSequenceClassification

from hfdistill import Comparison, DistillationTrainer, Experiment, FrozenTeacher
from hfdistill.report import ArmResult


def accuracy(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Share of equal labels."""
    return {"accuracy": float((logits.argmax(axis=-1) == labels).mean())}


def experiment(folder: Path, **changes: Any) -> Experiment:
    """Two-layer students of a four-layer BERT, on eight rows."""
    settings: dict[str, Any] = {
        "teacher": toy_bert(layers=4, seed=1),
        "make_student": toy_bert,
        "arguments": arguments(folder, train_sampling_strategy="group_by_length"),  # which permutes ragged rows
        "train_dataset": text_rows(),
        "evaluation": {"validation": text_rows(12, seed=1), "test": text_rows(5, seed=2)},
        "data_collator": collate,
        "processing_class": None,
        "metrics": accuracy,
        "metric": "accuracy",
        "output_dir": folder,
        "data": {"name": "toy"},
    }
    return Experiment(**(settings | changes))


ARMS = {"control": None, "kd": "kd", "pkd": "pkd"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """An experiment of three arms and two seeds, saved."""
    folder = tmp_path_factory.mktemp("experiment")
    comparison = experiment(folder).run(ARMS, [0, 1])
    comparison.save(folder)
    return comparison, folder


def test_predictions_are_the_saved_students_and_follow_the_labels(finished: tuple[Comparison, Path]):
    """A report scores predictions against labels row by row; both must be in the same order, of the saved weights."""
    comparison, folder = finished
    student = AutoModelForSequenceClassification.from_pretrained(folder / "kd" / "seed-1").eval()
    kept, known = load_file(folder / "kd/seed-1/predictions.safetensors"), load_file(folder / "evaluation.safetensors")
    for split, rows in experiment(folder).evaluation.items():
        batch = collate(list(rows))
        assert known[f"{split}/labels"].tolist() == batch.pop("labels").tolist()
        with torch.no_grad():
            np.testing.assert_allclose(kept[split], student(**batch).logits.numpy(), atol=1e-5)
            taught = toy_bert(layers=4, seed=1)(**batch).logits.numpy()
        np.testing.assert_allclose(known[f"{split}/teacher_logits"], taught, atol=1e-5)
        assert kept[split].dtype == np.float32
    kd = next(arm for arm in comparison.arms if arm.name == "kd")
    scores = [accuracy(kept[split], known[f"{split}/labels"])["accuracy"] for split in ("validation", "test")]
    assert [kd.metrics[1]["accuracy"], kd.metrics[1]["test/accuracy"]] == pytest.approx(scores)


def test_results_name_everything_that_a_report_needs(finished: tuple[Comparison, Path]):
    """The record is read by other programs, long after: names of its parts are a promise."""
    comparison, folder = finished
    told = json.loads((folder / "results.json").read_text())
    assert told["folders"] == {arm: [str(folder / arm / f"seed-{seed}") for seed in (0, 1)] for arm in ARMS}
    assert told["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert told["teacher_folder"] == ""  # it was made here
    assert told["protocol"]["task"] == "text-classification"
    assert told["protocol"]["data"] == {"name": "toy"}
    assert told["protocol"]["evaluation_rows"] == {"validation": 12, "test": 5}
    assert [ArmResult.from_json(json.dumps(arm)) for arm in told["arms"]] == comparison.arms


def test_a_student_is_told_of_its_own_arm_without_paths(finished: tuple[Comparison, Path]):
    """These files are published with the student: other arms are not its business, nor are folders of this machine."""
    _, folder = finished
    for arm in ARMS:
        text = (folder / arm / "seed-0" / "results.json").read_text()
        told = json.loads(text)
        expected = ["control"] if arm == "control" else ["control", arm]
        assert [result["name"] for result in told["arms"]] == expected
        assert list(told["protocol"]["arms"]) == expected
        assert {"arguments", "recipe"}.isdisjoint(told["protocol"])
        assert str(folder) not in text
        assert told["protocol"]["data"] == {"name": "toy"}
        assert str(folder) not in (folder / arm / "seed-0" / "README.md").read_text()


def test_the_log_of_a_run_lies_beside_its_student(finished: tuple[Comparison, Path]):
    """Learning curves are drawn from it, each term by its name."""
    _, folder = finished
    log = json.loads((folder / "kd" / "seed-0" / "log_history.json").read_text())
    assert [line["step"] for line in log if "loss/kd" in line] == [1, 2]


def test_the_sample_batch_holds_inputs_alone(finished: tuple[Comparison, Path], tmp_path: Path):
    """An export is checked on it, called as the student is called; of many rows, 64 from all over the split."""
    _, folder = finished
    batch = load_file(folder / "sample_batch.safetensors")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert len(batch["input_ids"]) == 12
    many = text_rows(100, seed=3)
    experiment(tmp_path, evaluation={"validation": many}).run({"control": None}, [0])
    ids = load_file(tmp_path / "sample_batch.safetensors")["input_ids"]
    assert len(ids) == 64
    for row, number in ((0, 0), (63, 99)):
        wanted = many[number]["input_ids"]
        assert ids[row][: len(wanted)].tolist() == wanted


def test_a_broken_off_experiment_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Only what is missing is trained; an arm that is finished keeps its figures, and its log."""
    first = experiment(tmp_path).run(ARMS, [0])
    (tmp_path / "pkd" / "seed-0" / "run.json").unlink()
    (tmp_path / "kd" / "seed-0" / "predictions.safetensors").unlink()
    log = (tmp_path / "kd" / "seed-0" / "log_history.json").read_text()
    trained, train = [], DistillationTrainer.train

    def noted(trainer: DistillationTrainer, *given: Any, **options: Any) -> Any:
        trained.append(Path(str(trainer.args.output_dir)).parent.name)
        return train(trainer, *given, **options)

    monkeypatch.setattr(DistillationTrainer, "train", noted)
    again = experiment(tmp_path).run(ARMS, [0])
    assert trained == ["pkd"]
    assert [arm.metrics for arm in again.arms] == [arm.metrics for arm in first.arms]
    assert [arm.kl for arm in again.arms] == [pytest.approx(arm.kl) for arm in first.arms]
    assert (tmp_path / "kd" / "seed-0" / "log_history.json").read_text() == log
    assert (tmp_path / "kd" / "seed-0" / "predictions.safetensors").is_file()


def test_a_run_that_is_cut_off_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Days of training must not begin anew, and must end in the same student."""

    def saving(folder: Path) -> Experiment:
        return experiment(folder, arguments=arguments(folder, max_steps=3, save_strategy="steps", save_steps=1))

    whole = saving(tmp_path / "whole").run({"kd": "kd"}, [0])
    begun, step = [], DistillationTrainer.training_step

    def cut_off(trainer: DistillationTrainer, *given: Any, **options: Any) -> Any:
        begun.append(trainer.state.global_step)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return step(trainer, *given, **options)

    monkeypatch.setattr(DistillationTrainer, "training_step", cut_off)
    with pytest.raises(KeyboardInterrupt):
        saving(tmp_path / "cut").run({"kd": "kd"}, [0])
    again = saving(tmp_path / "cut").run({"kd": "kd"}, [0])
    assert begun[:4] == [0, 1, 2, 2]
    assert again.arms[0].metrics == whole.arms[0].metrics
    ours, theirs = (load_file(tmp_path / run / "kd" / "seed-0" / "model.safetensors") for run in ("cut", "whole"))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_an_adapter_is_refused_before_it_is_trained(tmp_path: Path):
    """Its folder holds no model that could be measured, which would be found after days of training."""
    with pytest.raises(TypeError, match=r"got a Peft\w+.*peft_config"):
        experiment(tmp_path, make_student=lambda: with_lora(toy_bert(), ["query"])).run(ARMS, [0])


OTHERS = ({"batching": {"augmentation": "flip"}}, {"train_dataset": text_rows(seed=9)})


@pytest.mark.parametrize("change", OTHERS, ids=lambda change: next(iter(change)))
def test_other_rows_or_batches_are_another_run(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A student that saw other images must not be taken for this one."""
    experiment(tmp_path).run({"control": None}, [0])
    monkeypatch.setattr(DistillationTrainer, "train", lambda *_, **__: pytest.fail("trained"))
    experiment(tmp_path).run({"control": None}, [0])
    with pytest.raises(pytest.fail.Exception, match="trained"):
        experiment(tmp_path, **change).run({"control": None}, [0])


class Noted:
    """A collator that notes how many rows it was given, and marks them."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch."""
        self.rows += len(rows)
        return collate(rows)


def test_each_collator_serves_its_own_batches(tmp_path: Path):
    """Augmented rows in evaluation would measure something else than a user of the student gets."""
    training, evaluation, teacher = Noted(), Noted(), Noted()
    collators = {"data_collator": training, "evaluation_collator": evaluation, "teacher_collator": teacher}
    experiment(tmp_path, **collators).run({"kd": "kd"}, [0])
    assert training.rows == 2 * 4  # two steps of four rows
    assert evaluation.rows >= 12 + 5
    assert teacher.rows >= 12 + 5


@pytest.mark.parametrize(
    ("arms", "seeds", "said"), [({}, [0], "an arm and a seed"), ({"kd": "kd"}, [], "an arm and a seed")]
)
def test_nothing_to_run_is_refused(arms: dict[str, Any], seeds: list[int], said: str, tmp_path: Path):
    """An empty table would look like a result."""
    with pytest.raises(ValueError, match=said):
        experiment(tmp_path).run(arms, seeds)


def test_a_comparison_without_a_control_has_no_difference(tmp_path: Path):
    """There is nothing to compare with; its students' results hold their own arm alone."""
    comparison = experiment(tmp_path).run({"kd": "kd"}, [0])
    assert comparison.arms[0].difference is None
    told = json.loads((tmp_path / "kd" / "seed-0" / "results.json").read_text())
    assert [arm["name"] for arm in told["arms"]] == ["kd"]
    replace(comparison, labels=[]).save(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "results.md").read_text() == comparison.table() + "\n"


def test_students_learn_from_a_converted_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The teacher's row of the table is the teacher as it is; what trainers convert in place must be another model."""
    taught: list[DistillationTrainer] = []
    own = DistillationTrainer.train

    def train(trainer: DistillationTrainer, *args: Any, **options: Any) -> Any:
        taught.append(trainer)
        return own(trainer, *args, **options)

    monkeypatch.setattr(DistillationTrainer, "train", train)
    made = experiment(tmp_path, arguments=arguments(tmp_path, teacher_dtype="bfloat16"))
    compared = made.run({"control": None, "kd": "kd"}, [0, 1])
    plain = experiment(tmp_path / "plain")
    exact = plain._predict(plain.teacher, plain.teacher_collator)
    kept = load_file(tmp_path / "evaluation.safetensors")
    assert all(np.array_equal(kept[f"{split}/teacher_logits"], exact[split]) for split in exact)
    assert compared.teacher.bytes == sum(own.numel() * 4 for own in made.teacher.parameters())
    teachers = [trainer.teacher.model for trainer in taught if isinstance(trainer.teacher, FrozenTeacher)]
    assert len(teachers) == 2
    assert teachers[0] is teachers[1], "one copy serves all runs"
    assert {own.dtype for own in teachers[0].parameters()} == {torch.bfloat16}
    assert {own.dtype for own in made.teacher.parameters()} == {torch.float32}
    unchanged = made.trainer("kd", "kd", 0, teacher_dtype=None)
    assert isinstance(unchanged.teacher, FrozenTeacher)
    assert unchanged.teacher.model is made.teacher
