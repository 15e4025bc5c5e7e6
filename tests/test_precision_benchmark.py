"""The benchmark of a teacher's precision, at toy size: that its figures are what they are called."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from toy_models import text_inputs, toy_bert
from transformers import PreTrainedTokenizerFast

from benchmarks import precision
from hfdistill.teacher_precision import convert


def test_a_twin_is_told_apart_by_as_much_as_it_differs() -> None:
    """By hand: logits that are 0.5 higher for one class, and states that are not."""
    model = toy_bert(classes=2)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.classifier.bias[0] += 0.5
    inputs = [text_inputs(seed=seed) for seed in range(3)]
    found = precision.fidelity(model, twin, inputs)
    with torch.no_grad():
        first = torch.cat([model(**batch).logits for batch in inputs]).double()
    other = first + torch.tensor([0.5, 0.0])
    kl = torch.nn.functional.kl_div(other.log_softmax(-1), first.log_softmax(-1), log_target=True, reduction="none")
    assert found.figures["KL of bfloat16 from float32, mean"] == pytest.approx(float(kl.sum(-1).mean()), rel=1e-4)
    assert found.figures["KL of bfloat16 from float32, largest"] == pytest.approx(float(kl.sum(-1).max()), rel=1e-4)
    assert found.figures["logits, largest difference"] == pytest.approx(0.5, rel=1e-4)
    same = (first.argmax(-1) == other.argmax(-1)).double().mean()
    assert found.figures["same class"] == pytest.approx(float(same))
    assert found.figures["hidden states, relative error of the worst layer"] == 0.0
    assert [len(times) for times in found.seconds.values()] == [3, 3]


def test_rounded_states_are_off_by_what_bfloat16_keeps() -> None:
    """Eight bits of a number, a few layers deep: about a hundredth, not a tenth and not a millionth."""
    model = toy_bert(layers=4)
    twin = copy.deepcopy(model)
    convert(twin, "bfloat16")
    found = precision.fidelity(model, twin, [text_inputs()])
    assert 1e-3 < found.figures["hidden states, relative error of the last layer"] < 5e-2
    assert found.figures["KL of bfloat16 from float32, mean"] > 0


def test_it_runs_from_its_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hours of runs must not end in a misspelt name."""
    words = {word: at for at, word in enumerate(["[UNK]", "[PAD]", "film", "is", "good", "bad", "the"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=16
    )
    fast.save_pretrained(tmp_path / "teacher")
    names: dict[str, Any] = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    toy_bert(layers=4, classes=2, vocabulary=len(words), **names).save_pretrained(tmp_path / "teacher")
    features = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        texts = [f"the film is {('bad', 'good')[row % 2]}" for row in range(12)]
        rows = Dataset.from_dict({"text": texts, "label": [row % 2 for row in range(12)]}, features=features)
        rows.to_parquet(tmp_path / "data" / f"{split}.parquet")
    line = ["--teacher", str(tmp_path / "teacher"), "--dataset", str(tmp_path / "data"), "--text_columns", "text"]
    line += ["--train_rows", "8", "--batch", "4", "--student_layers", "2", "--seeds", "0", "1", "--device", "cpu"]
    line += ["--output", str(tmp_path / "precision.json"), "--markdown", str(tmp_path / "precision.md")]
    monkeypatch.setattr(sys, "argv", ["precision", *line])
    precision.main()
    written = json.loads((tmp_path / "precision.json").read_text())
    assert set(written["seconds"]) == {
        f"{name}, {kind}" for name in ("teacher", "kd", "tinybert") for kind in precision.PRECISIONS
    }
    assert [len(written["seconds"][f"kd, {kind}"]) for kind in precision.PRECISIONS] == [2, 2]
    assert 0 <= written["figures"]["accuracy of tinybert, bfloat16, mean"] <= 1
    table = (tmp_path / "precision.md").read_text()
    assert table in capsys.readouterr().out
    assert "| training a student, kd |" in table
    assert all(line.count("|") in (3, 5) for line in table.splitlines() if line.startswith("|"))
