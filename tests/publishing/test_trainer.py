"""A trainer that publishes: the record beside its student, whose card is whose, and what goes up while it trains."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import TOKEN, Hub, reached, running_hub
from peft import PeftModel
from toy_models import toy_bert, with_lora
from training_toys import arguments, trainer_of
from transformers import AutoModelForSequenceClassification

from hfdistill import HiddenStateLoss, Objective, TaskLoss
from hfdistill.publishing.record import RECORD


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub that this process is logged in to."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running_hub() as server, reached(server.url, monkeypatch):
        yield server


def trainer_in(folder: Path, **changes: Any) -> Any:
    """A toy trainer that publishes."""
    return trainer_of(folder, changes.pop("objective", "kd"), **changes)


def test_a_record_lies_beside_saved_students_only(tmp_path: Path) -> None:
    """A report reads it; in a checkpoint it would tell of a run that is not over."""
    trainer = trainer_in(tmp_path / "run", save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    trainer.save_model(str(tmp_path / "elsewhere"))
    trainer.save_model(str(tmp_path / "checkpoint-best"))
    for folder in ("run", "elsewhere", "checkpoint-best"):
        record = json.loads((tmp_path / folder / RECORD).read_text())
        assert (record["preset"], record["training"]["steps"]) == ("kd", 2)
    assert not list((tmp_path / "run").glob("checkpoint-*/" + RECORD))


def test_a_trainer_without_a_teacher_publishes_too(tmp_path: Path, hub: Hub) -> None:
    """The control of an experiment is a student as any other, and its card must not speak of a teacher."""
    trainer = trainer_in(tmp_path / "control", objective=Objective(task=TaskLoss()), teacher=None)
    trainer.train()
    pushed = trainer.push_to_hub()
    assert pushed.commit_url.startswith(f"{hub.url}/me/control/commit/")
    card = hub.repositories["me/control"].files()["README.md"].decode()
    assert "trained on labels alone, without a teacher" in card
    assert "knowledge-distillation" not in card


def test_a_card_of_ones_own_survives_saving_and_pushing(tmp_path: Path, hub: Hub) -> None:
    """PEFT writes into any README.md that it finds when it saves, with the base's local path."""
    trainer = trainer_in(tmp_path / "lora", student=with_lora(toy_bert(), ["query"]))
    own = "---\nlicense: mit\n---\n# Mine\n"
    (tmp_path / "lora").mkdir(exist_ok=True)
    (tmp_path / "lora" / "README.md").write_text(own)
    trainer.train()
    trainer.push_to_hub(merge_adapter=True)
    assert (tmp_path / "lora" / "README.md").read_text() == own
    assert hub.repositories["me/lora"].files()["README.md"].decode() == own
    assert isinstance(trainer.model, PeftModel), "merging is for the copy that is pushed"
    assert any("lora_A" in name for name, _ in trainer.model.named_parameters())


def test_a_card_of_peft_gives_way_to_ours(tmp_path: Path, hub: Hub) -> None:
    """Its template says nothing, and names the base by its path on this machine."""
    toy_bert().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    trainer = trainer_in(tmp_path / "lora", student=with_lora(base, ["query"]))
    trainer.train()
    trainer.save_model()
    assert "More Information Needed" in (tmp_path / "lora" / "README.md").read_text()
    trainer.save_model()
    trainer.create_model_card()
    card = (tmp_path / "lora" / "README.md").read_text()
    assert "hfdistill wrote this card" in card
    assert str(tmp_path) not in card.replace("`", "")
    assert not hub.requests, "the card asks nobody"


def test_create_model_card_takes_what_the_trainers_own_takes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Scripts written for Trainer pass these names; what is not written is said."""
    trainer = trainer_in(tmp_path / "run")
    trainer.save_model()
    with caplog.at_level(logging.WARNING):
        trainer.create_model_card(
            license="mit",
            language="en",
            tags="mine",
            model_name="My student",
            finetuned_from="me/base",
            dataset_tags="me/rows",
            tasks="text-classification",
        )
    card = (tmp_path / "run" / "README.md").read_text()
    for line in ("license: mit", "language: en", "- mine", "# My student", "base_model: me/base", "- me/rows"):
        assert line in card, line
    assert "tasks, dataset and dataset_args are not written" in caplog.text


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_strategies_that_publish_pickles_are_refused(tmp_path: Path, hub: Hub, strategy: str) -> None:
    """Optimizer and random states are pickles: loading them runs whatever somebody put there."""
    with pytest.raises(ValueError, match=rf"hub_strategy.*{strategy}.*every_save"):
        trainer_in(tmp_path / "run", push_to_hub=True, hub_strategy=strategy)
    assert not hub.requests


def test_hub_strategy_end_pushes_nothing_before_the_end(tmp_path: Path, hub: Hub) -> None:
    """Who chose it pays for uploads, or does not want to show a student that is half trained."""
    trainer = trainer_in(
        tmp_path / "run", push_to_hub=True, hub_strategy="end", hub_revision="v1", save_strategy="steps", save_steps=1
    )
    trainer.train()
    assert hub.repositories["me/run"].messages == ["initial commit"]
    trainer.save_model()
    assert hub.repositories["me/run"].messages == ["initial commit", "Model save"]
    assert "model.safetensors" in hub.repositories["me/run"].files("v1")
    assert "model.safetensors" not in hub.repositories["me/run"].files("main")


def test_a_push_that_fails_while_training_is_told_and_training_goes_on(
    tmp_path: Path, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    """It runs in the background, where its error would be lost; hours of training must not be lost for it."""
    hub.trouble["/commit/"] = 500
    objective = Objective(task=TaskLoss(), hidden=HiddenStateLoss())
    trainer = trainer_in(
        tmp_path / "run", objective=objective, push_to_hub=True, save_strategy="steps", save_steps=2, hub_token=TOKEN
    )
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2
    assert "A push during training failed" in caplog.text
    assert "HTTP 500" in caplog.text
    assert TOKEN not in caplog.text
    assert trainer.push_to_hub().commit_url
    files = hub.repositories["me/run"].files()
    assert set(files) == {".gitattributes", "README.md", RECORD, "config.json", "model.safetensors"}
    assert not [name for name, content in files.items() if TOKEN.encode() in content]


def test_a_checkpoint_without_a_student_does_not_end_training(
    tmp_path: Path, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    """Sharded training saves its checkpoints in pieces, of which none is a student yet."""
    trainer = trainer_in(tmp_path / "run", push_to_hub=True)
    (tmp_path / "checkpoint-1").mkdir()
    with caplog.at_level(logging.WARNING):
        trainer._push_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert "Nothing was pushed of this checkpoint" in caplog.text
    assert hub.repositories["me/run"].messages == ["initial commit"]


def test_an_invalid_hub_model_id_is_explained_at_once(tmp_path: Path, hub: Hub) -> None:
    """The name is made of the output folder's where none is given, and that may be anything."""
    args = arguments(tmp_path / "my run", push_to_hub=True)
    with pytest.raises(ValueError, match=r"'my run' is no name of a repository.*hub_model_id"):
        trainer_in(tmp_path, args=args)
    assert not hub.requests


def test_merging_leaves_the_answers_of_the_trained_student(tmp_path: Path, hub: Hub) -> None:
    """An adapter of a model that was never saved can be merged where it is in memory, and nowhere else."""
    trainer = trainer_in(tmp_path / "lora", student=with_lora(toy_bert(), ["query"]))
    trainer.train()
    trainer.push_to_hub(merge_adapter=True)
    for name, content in hub.repositories["me/lora"].files().items():
        (tmp_path / "pulled").mkdir(exist_ok=True)
        (tmp_path / "pulled" / name).write_bytes(content)
    pulled = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pulled")
    ids = torch.arange(5, 11)[None]
    with torch.no_grad():
        torch.testing.assert_close(pulled(ids).logits, trainer.model.eval()(ids).logits, rtol=0, atol=1e-6)
    record = json.loads((tmp_path / "pulled" / RECORD).read_text())
    assert record["merged"] is True
    assert record["student"]["parameters"] == pulled.num_parameters()
