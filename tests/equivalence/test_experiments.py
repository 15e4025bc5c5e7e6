"""Two processes must make one experiment: the same figures, in one set of files, and found again by both."""

import json
from pathlib import Path

import experiments
import numpy as np
import pytest
import torch
from launching import in_two_processes
from safetensors.numpy import load_file
from training_toys import collate, text_rows
from transformers import AutoModelForSequenceClassification

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote."""
    folder = tmp_path_factory.mktemp("experiments")
    in_two_processes(experiments.__file__, str(folder))
    return folder


def test_both_processes_train_once_and_measure_the_same(folder: Path) -> None:
    """Were one to train while the other takes the finished run, it would wait for ever."""
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["processes"] == 2
    assert first["trained"] == second["trained"] == ["control", "kd"]
    assert first["kl"] == second["kl"]
    assert first["kl"][0] == first["kl"][1]


def test_predictions_of_two_processes_are_in_the_order_of_the_rows(folder: Path) -> None:
    """Each process predicts a part of the rows, and some of them twice."""
    batch = collate(list(text_rows(experiments.ROWS, seed=1)))
    labels = batch.pop("labels")
    student = AutoModelForSequenceClassification.from_pretrained(folder / "out/kd/seed-0").eval()
    with torch.no_grad():
        expected = student(**batch).logits.numpy()
    kept = load_file(folder / "out/kd/seed-0/predictions.safetensors")["validation"]
    np.testing.assert_allclose(kept, expected, atol=1e-5)
    assert load_file(folder / "out/evaluation.safetensors")["validation/labels"].tolist() == labels.tolist()
