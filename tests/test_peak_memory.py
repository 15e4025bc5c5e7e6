"""Peak memory of inference: it grows by what a model and its inputs take, and by nothing of this process."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from toy_models import image_inputs, text_inputs, toy_bert, toy_vit

from hfdistill import peak_memory as module
from hfdistill.peak_memory import peak_memory

linux = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc, which Linux has")


@linux
def test_memory_of_a_model_is_its_weights_and_what_they_need(tmp_path: Path):
    """Less would mean that pages of weights are missed; half as much more, that this process or its imports count."""
    model = toy_vit(layers=6, width=512, intermediate_size=4096)
    model.save_pretrained(tmp_path)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert weights > 120e6
    assert weights < peak_memory(tmp_path, {**image_inputs(1), "labels": torch.zeros(1)}) < 1.5 * weights


@linux
@pytest.mark.parametrize(("words", "told"), [("Traceback\nValueError: no such input\n", "no such input"), ("", "-9")])
def test_a_failure_tells_what_failed(words: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It happens in another process, whose words are otherwise lost; one that is killed says none."""
    failed = subprocess.CompletedProcess((), -9, stdout="", stderr=words)
    monkeypatch.setattr(module.subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(RuntimeError, match=f"memory of .* failed: .*{told}$"):
        peak_memory(tmp_path, {"image": torch.zeros(1, 3)})


def test_a_system_without_its_source_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Elsewhere than on Linux no figure is better than one of another meaning."""
    monkeypatch.setattr(module, "_STATUS", tmp_path / "nothing")
    with pytest.raises(OSError, match="this system lacks"):
        peak_memory(tmp_path, text_inputs(1))


@pytest.mark.gpu
def test_on_a_gpu_it_is_what_torch_allocates(tmp_path: Path):
    """The weights at least, and far less than a process takes on the device."""
    model = toy_bert(width=64, layers=4)
    model.save_pretrained(tmp_path)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert weights < peak_memory(tmp_path, text_inputs(1), "cuda") < weights + 64e6
