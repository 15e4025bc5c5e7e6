"""Students as ONNX: the file answers as the student does, on batches of any size, or it is not kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from toy_models import image_inputs, text_inputs, toy_bert, toy_deit_with_teacher, with_lora
from training_toys import trainer_of
from transformers import PreTrainedModel

from hfdistill import export
from hfdistill.export import OnnxExport, export_onnx, read_batch
from hfdistill.measurement import Latency
from hfdistill.publishing.record import write_training_record

SIZES = (1, 3)


def answers(file: Path, inputs: Mapping[str, Tensor]) -> Tensor:
    """What a fresh session of ONNX Runtime makes of the inputs."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})[0])


def expected(model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The model's own logits."""
    with torch.no_grad():
        logits: Tensor = model(**inputs)["logits"]
    return logits


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path, OnnxExport]:
    """A BERT exported from where a recipe leaves it, with the recipe's sample two folders above."""
    out = tmp_path_factory.mktemp("out")
    student, folder = toy_bert(), out / "kd" / "seed-0"
    student.save_pretrained(folder)
    save_file(text_inputs(4, 10), out / "sample_batch.safetensors")
    return student, folder, export_onnx(folder, sizes=SIZES)


def test_a_text_student_answers_alike_at_every_size(recipe: tuple[PreTrainedModel, Path, OnnxExport]) -> None:
    """Other rows, lengths and padding than it was written with: an axis that became a constant fails here."""
    student, folder, _ = recipe
    for rows, tokens in ((1, 4), (5, 10), (2, 33)):
        inputs = text_inputs(rows, tokens, seed=7)
        given = answers(folder / "model.onnx", inputs)
        torch.testing.assert_close(given, expected(student, inputs), atol=1e-5, rtol=0)


def test_the_record_holds_what_was_measured(recipe: tuple[PreTrainedModel, Path, OnnxExport]) -> None:
    """Card and report are written from it: a figure that is not the measured one would be published."""
    _, folder, exported = recipe
    record = json.loads((folder / "onnx.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.json", "model.onnx", "model.safetensors", "onnx.json")
    ]
    assert record == json.loads(json.dumps(exported.record()))
    assert (record["file"], record["rows"], record["tolerance"]) == ("model.onnx", 4, export.TOLERANCE)
    assert 0 < record["largest_difference"] < 1e-5
    assert record["opset"] >= 18
    assert [entry["batch_size"] for entry in record["latencies"]] == list(SIZES)
    assert all(Latency.from_record(entry) in exported.latencies for entry in record["latencies"])
    assert {entry["runtime"] for entry in record["latencies"]} == {"onnxruntime"}
    assert all(entry["seconds"] > 0 and len(entry["repeats"]) == 10 for entry in record["latencies"])
    assert {entry["threads"] for entry in record["latencies"]} == {torch.get_num_threads()}
    assert set(record["versions"]) == {"onnx", "onnxruntime", "onnxscript", "torch", "transformers"}
    assert str(folder) not in json.dumps(record)
    assert "at most" in str(exported)
    assert "4 rows" in str(exported)


def test_a_file_that_answers_differently_is_not_kept(
    recipe: tuple[PreTrainedModel, Path, OnnxExport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong file that lies there is deployed; the right one of before must survive the attempt."""
    _, good, _ = recipe
    toy_bert(seed=1).save_pretrained(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"of before")
    before = sorted(path.name for path in tmp_path.iterdir())

    def other(student: object, inputs: object, file: Path, opset: int | None) -> int:
        shutil.copy(good / "model.onnx", file)
        return 20

    monkeypatch.setattr(export, "_write", other)
    with pytest.raises(ValueError, match=r"logits differ from those of BertForSequenceClassification by \d.*not kept"):
        export_onnx(tmp_path, batch=text_inputs())
    assert (tmp_path / "model.onnx").read_bytes() == b"of before"
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    kept = export_onnx(tmp_path, batch=text_inputs(), tolerance=100.0, sizes=(1,))
    assert kept.largest_difference > 0.01
    assert (tmp_path / "model.onnx").read_bytes() == (good / "model.onnx").read_bytes()


class OneWay:
    """A stand-in of ONNX Runtime whose answers are wrong for some inputs only."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def run(self, inputs: Mapping[str, Tensor]) -> np.ndarray:
        """The logits, or not."""
        logits = expected(toy_bert(), inputs).numpy()
        rows, tokens = inputs["input_ids"].shape
        if {"one row": rows == 1, "fewer tokens": tokens < 9, "no number": False}[self.wrong]:
            logits = logits + 0.5
        return np.full_like(logits, np.nan) if self.wrong == "no number" else logits


@pytest.mark.parametrize("wrong", ["one row", "fewer tokens", "no number"])
def test_every_view_of_the_inputs_counts(
    wrong: str,
    recipe: tuple[PreTrainedModel, Path, OnnxExport],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file may be right on the whole batch alone; and NaN is within no tolerance."""
    _, good, _ = recipe
    toy_bert().save_pretrained(tmp_path)
    monkeypatch.setattr(export, "_write", lambda _, __, file, ___: shutil.copy(good / "model.onnx", file) and 20)
    monkeypatch.setattr(export._Session, "run", lambda _, inputs: OneWay(wrong).run(inputs))
    with pytest.raises(ValueError, match=r"differ .* by (5\.00e-01|inf)"):
        export_onnx(tmp_path, batch=text_inputs())
    assert not (tmp_path / "model.onnx").exists()


def test_fewer_tokens_are_real_ones_under_either_padding() -> None:
    """A row of padding alone has no answer that could be compared."""
    right = text_inputs(3, 8)
    left = {name: value.flip(1) for name, value in right.items()}
    for inputs in (right, left):
        views = list(export._views(inputs))
        assert [tuple(view["input_ids"].shape) for view in views] == [(3, 8), (1, 8), (3, 4)]
        assert all(view["attention_mask"].any(dim=1).all() for view in views)


def test_a_student_with_two_heads_answers_by_their_mean(tmp_path: Path) -> None:
    """DeiT's class takes no labels and gives three kinds of logits; the file must give the one that counts."""
    student = toy_deit_with_teacher()
    student.save_pretrained(tmp_path / "student")
    file = tmp_path / "elsewhere" / "deit.onnx"
    exported = export_onnx(
        tmp_path / "student", file, batch={**image_inputs(1), "labels": torch.tensor([0])}, sizes=(2,)
    )
    assert exported.file == file
    assert json.loads((file.parent / "onnx.json").read_text(encoding="utf-8"))["file"] == "deit.onnx"
    assert not (tmp_path / "student" / "model.onnx").exists()
    inputs = image_inputs(5, seed=3)
    torch.testing.assert_close(answers(file, inputs), expected(student, inputs), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT of transformers
def test_an_adapter_is_merged(tmp_path: Path) -> None:
    """Without it the file would be the base model, and pass for the student."""
    base, folder = toy_bert(), tmp_path / "adapter"
    base.save_pretrained(tmp_path / "base")
    student = with_lora(type(base).from_pretrained(tmp_path / "base").eval(), ["query", "value"])
    student.save_pretrained(folder)
    write_training_record(trainer_of(tmp_path / "run", "kd", student), folder)
    before = {path.name for path in folder.iterdir()}
    export_onnx(folder, batch=text_inputs(), sizes=(1,))
    assert {path.name for path in folder.iterdir()} - before == {"model.onnx", "onnx.json"}
    inputs = text_inputs(seed=5)
    given = answers(folder / "model.onnx", inputs)
    torch.testing.assert_close(given, expected(student.eval(), inputs), atol=1e-5, rtol=0)
    assert (given - expected(base, inputs)).abs().max() > 0.01
    type(base.bert)(base.config).save_pretrained(tmp_path / "base")  # the same name, but the head is gone
    with pytest.raises(ValueError, match=r"classifier\.bias.*modules_to_save"):
        export_onnx(folder, batch=text_inputs(), sizes=(1,))


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is one step away from working, and the message must name the step."""
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        export_onnx(tmp_path / "nowhere", batch=text_inputs())
    with pytest.raises(ValueError, match="holds no student"):
        export_onnx(tmp_path, batch=text_inputs())
    folder = tmp_path / "kd" / "seed-0"
    toy_bert().save_pretrained(folder)
    with pytest.raises(ValueError, match=r"no sample_batch.safetensors lies in .* pass batch=\.\.\."):
        export_onnx(folder)
    with pytest.raises(ValueError, match=r"there is no file .*missing.safetensors"):
        read_batch(tmp_path / "missing.safetensors")
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(ImportError, match=r"needs onnxruntime: pip install 'hfdistill\[export\]'"):
        export_onnx(folder, batch=text_inputs())


@pytest.mark.parametrize(
    "batch",
    [
        {},
        image_inputs(),
        {**text_inputs(3), "attention_mask": torch.ones(2, 9, dtype=torch.long)},
        {"input_ids": torch.zeros(0, 9, dtype=torch.long)},
        {"input_ids": torch.tensor(3)},
    ],
    ids=["nothing", "not its own", "unequal rows", "no row", "a number"],
)
def test_inputs_that_cannot_be_its_own_are_refused(batch: dict[str, Tensor], tmp_path: Path) -> None:
    """The file's inputs are named after them; torch's exporter would fail with a page of its own."""
    toy_bert().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected tensors of as many rows each, named as what BertForSequence"):
        export_onnx(tmp_path, batch=batch)


def test_a_student_that_torch_cannot_write_is_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own message is a page of advice to its developers, with the reason somewhere below."""
    toy_bert().save_pretrained(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise torch.onnx.OnnxExporterError("a page of advice") from RuntimeError("no such operator\nand its trace")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ValueError, match=r"cannot write BertForSequenceClassification as ONNX: no such operator Ano"):
        export_onnx(tmp_path, batch=text_inputs())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_sample_beside_the_student_goes_first(tmp_path: Path) -> None:
    """Who puts his own inputs there means them."""
    folder = tmp_path / "kd" / "seed-0"
    folder.mkdir(parents=True)
    save_file(text_inputs(2), tmp_path / "sample_batch.safetensors")
    assert len(export._sample(folder)["input_ids"]) == 2
    save_file(text_inputs(3), folder / "sample_batch.safetensors")
    assert len(export._sample(folder)["input_ids"]) == 3
