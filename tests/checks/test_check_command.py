"""`hfdistill check`: a recipe examined as it would be trained, its exit code, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_text_classification import toy_tokenizer, write_glue
from toy_images import SHAPES, save_classifier, write_shapes
from transformers import BertConfig, BertForSequenceClassification

from hfdistill.cli import main
from hfdistill.equivalence import recipes
from hfdistill.equivalence.differences import Difference, Differences

NAMES = ["negative", "positive"]


def save_teacher(folder: Path, swapped: bool = False, names: Sequence[str] = NAMES) -> Path:
    """A BERT that knows "good" from "bad" by the words' embeddings, and calls its classes so or the other way round.

    The residual stream is left alone: embeddings go through to the class token by one head that looks everywhere.
    """
    config = BertConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=1, intermediate_size=8, num_labels=2
    )
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.id2label, config.label2id = dict(enumerate(names)), {name: at for at, name in enumerate(names)}
    model = BertForSequenceClassification(config)
    weights = model.state_dict()
    words = weights["bert.embeddings.word_embeddings.weight"]
    words[4], words[5] = 0.0, 0.0
    words[4, 0], words[5, 0] = 8.0, -8.0  # "good" and "bad" after the four special tokens
    for layer in range(2):
        attention = f"bert.encoder.layer.{layer}.attention"
        for name in ("query", "key"):
            weights[f"{attention}.self.{name}.weight"].zero_()
        for name in ("self.value", "output.dense"):
            weights[f"{attention}.{name}.weight"].copy_(
                4.0 * weights[f"{attention}.{name}.weight"].new_ones(16).diag()
            )
    weights["bert.pooler.dense.weight"].copy_(torch.eye(16))
    head = weights["classifier.weight"]
    head.zero_()
    good = 0 if not swapped else 1  # the rows of write_glue that say "good" have the label 0
    head[good, 0], head[1 - good, 0] = 0.5, -0.5
    model.save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def read(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """The exit status of `hfdistill check --json` and what it printed, without what making the toys did."""
    capsys.readouterr()
    status = main(["check", *words, "--json"])
    return status, json.loads(capsys.readouterr().out)


def words_of(tmp_path: Path, teacher: Path, *more: str) -> list[str]:
    """The words of a recipe on toy data."""
    if not (tmp_path / "glue").is_dir():
        write_glue(tmp_path / "glue", "sst2", ("sentence",), NAMES)
    given = {"task": "sst2", "data_dir": tmp_path / "glue", "teacher": teacher, "student_layers": 1}
    given |= {"output_dir": tmp_path / "out", "per_device_train_batch_size": 8, "disable_tqdm": True}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))] + ["--use_cpu", *more]


def test_a_sound_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Every arm but the control is examined, nothing is written, and scripts see 0."""
    words = words_of(tmp_path, save_teacher(tmp_path / "teacher"), "--arms", "control", "kd", "tinybert")
    status, found = read(words, capsys)
    assert status == 0
    assert found["sound"]
    assert set(found["arms"]) == {"kd", "tinybert"}
    complaints = [one["message"] for one in found["arms"]["kd"]["findings"] if one["level"] not in ("ok", "note")]
    assert not complaints
    quality = [one for one in found["arms"]["kd"]["findings"] if one["check"] == "teacher's quality"]
    assert quality[0]["figures"]["teacher"] == 1.0
    assert not (tmp_path / "out").exists()


def test_swapped_labels_are_an_error_and_end_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The names agree, so that nothing but the labelled rows can tell."""
    path = tmp_path / "recipe.yaml"
    teacher = save_teacher(tmp_path / "teacher", swapped=True)
    words = words_of(tmp_path, teacher)
    lines = [f"{words[at].removeprefix('--')}: {words[at + 1]}" for at in range(0, len(words) - 1, 2)]
    path.write_text("\n".join([*lines, "use_cpu: true", "arms: [control, kd]"]))
    assert main(["check", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "error    label order" in printed
    assert "label_map=[1, 0]" in printed


def test_an_arm_that_cannot_be_made_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The other arms are examined all the same."""
    teacher = save_teacher(tmp_path / "teacher")
    path = tmp_path / "recipe.json"
    wrong = {"hidden": {"loss": "HiddenStateLoss", "layers": [[1, 9]]}}
    path.write_text(json.dumps({"arms": ["wrong", "kd"], "objectives": {"wrong": wrong}}))
    status, found = read([str(path), *words_of(tmp_path, teacher)], capsys)
    arms = found["arms"]
    assert status == 1
    assert [(one["check"], one["level"]) for one in arms["wrong"]["findings"]] == [("trainer", "error")]
    assert arms["kd"]["worst"] != "error"


def test_an_image_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What concerns texts does not apply, and is said so; the rest is looked at."""
    images = write_shapes(tmp_path / "images")
    teacher = save_classifier(tmp_path / "teacher", names=tuple(SHAPES))
    words = ["--recipe", "image-classification", "--dataset", str(images), "--teacher", str(teacher)]
    words += ["--student_layers", "2", "--output_dir", str(tmp_path / "out"), "--use_cpu", "--arms", "kd"]
    status, printed = read(words, capsys)
    found = {one["check"]: one for one in printed["arms"]["kd"]["findings"]}
    assert status == 0
    assert found["tokenizers"]["message"].startswith("not applicable")
    assert found["teacher's quality"]["figures"]["items"] == 24
    assert set(found["terms"]["figures"]) == {"task", "kd"}


def test_bad_input_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A recipe that cannot be read is another thing than a run that is not sound."""
    assert main(["check", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
    assert main(["check", *words_of(tmp_path, tmp_path), "--lerning_rate", "1"]) == 2
    assert "learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize(("weights", "status"), [(0.0, 0), (0.5, 1)])
def test_equivalences_are_asked_for(
    weights: float, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """They train for a few steps, so only on demand; what they find decides too."""
    asked = []

    def stub(recipe: Any, experiment: Any, arm: str, words: Sequence[str]) -> Differences:
        asked.append((arm, list(words)))
        return Differences([Difference("resume", "two runs", weights=weights, tolerance=0.0, advice="Look at it.")])

    monkeypatch.setattr(recipes, "arm_equivalences", stub)
    words = words_of(tmp_path, save_teacher(tmp_path / "teacher"), "--arms", "kd")
    ended, found = read([*words, "--equivalence"], capsys)
    assert ended == status
    assert asked == [("kd", words)]
    assert found["equivalences"]["kd"]["comparisons"][0]["name"] == "resume"
    assert found["sound"] == (status == 0)
    assert main(["check", *words]) == 0
    assert len(asked) == 1
