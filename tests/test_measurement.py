"""What is measured on models and their outputs: agreement and divergence by hand and by scipy, size, and speed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import nn

from hfdistill import measurement
from hfdistill.measurement import agreement, mean_kl, parameter_count, samples_per_second, size_on_disk

# Agreement and divergence.


def test_agreement_counts_equal_choices():
    """Two of three rows choose the same class; the logits' size must not matter."""
    student = torch.tensor([[9.0, 1.0], [0.0, 0.1], [2.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0], [5.0, 9.0], [1.0, 2.0]])
    assert agreement(student, teacher) == pytest.approx(2 / 3)
    assert agreement(student, student) == 1.0


def test_agreement_of_one_output_is_pearsons():
    """One output has no argmax: every pair of regression models would agree fully."""
    student, teacher = np.random.default_rng(0).normal(size=(2, 20))
    expected = stats.pearsonr(student, teacher)[0]
    assert agreement(student, teacher) == pytest.approx(expected, rel=1e-12)
    assert agreement(student[:, None], teacher[:, None]) == pytest.approx(expected, rel=1e-12)
    assert agreement(-teacher, teacher) == pytest.approx(-1.0)
    assert agreement(np.full(20, 0.1), teacher) == agreement([1.0], [2.0]) == 0.0


def test_mean_kl_against_scipy():
    """The mean over rows of KL(teacher || student): the other direction, or a sum, would be another number."""
    student, teacher = np.random.default_rng(1).normal(size=(2, 7, 4))
    rows = special.rel_entr(special.softmax(teacher, axis=1), special.softmax(student, axis=1)).sum(axis=1)
    assert mean_kl(student, teacher) == pytest.approx(rows.mean(), rel=1e-9)
    assert mean_kl(teacher, student) != pytest.approx(rows.mean(), rel=1e-2)


def test_mean_kl_by_hand():
    """The teacher says 3/4, the student 1/2: 3/4 ln(3/2) + 1/4 ln(1/2) nats."""
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert mean_kl([[0.0, 0.0]], [[math.log(3), 0.0]]) == pytest.approx(expected)


def test_mean_kl_is_zero_at_equality_and_finite_far_away():
    """Sure models have logits whose softmax is 0 in float32; a figure of NaN would spoil a table."""
    far = torch.tensor([[300.0, -300.0]])
    assert mean_kl(far, far) == 0.0
    assert mean_kl(-far, far) == pytest.approx(600.0)
    shifted = torch.randn(50, 3)
    assert 0.0 <= mean_kl(shifted + 7, shifted) < 1e-6


def test_mean_kl_of_one_output_is_the_mean_squared_difference():
    """The softmax of one output is 1: its KL would be 0 for every student."""
    assert mean_kl([1.0, 2.0], [0.0, 4.0]) == pytest.approx(2.5)


def test_logits_may_be_arrays_or_tensors_of_any_float_type():
    """Trainer gives numpy arrays, memory-mapped ones are read-only, models give bfloat16 with a gradient."""
    frozen = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float16)
    frozen.flags.writeable = False
    live = torch.tensor([[2.0, 0.0], [1.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    assert agreement(live, frozen) == 0.5
    assert mean_kl(live, frozen) > 0


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 3), r"\(3, 2\) \(student\) and \(3, 3\)"),
        (torch.zeros(3, 2), torch.zeros(1, 2), "one shape"),
        (torch.zeros(0, 2), torch.zeros(0, 2), "at least one row"),
        (torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), "only the valid tokens"),
        (torch.tensor([[0.0, math.nan]]), torch.zeros(1, 2), "finite"),
        (torch.zeros(1, 2), torch.tensor([[0.0, -math.inf]]), "finite"),
    ],
)
def test_logits_that_cannot_be_compared_are_refused(student: torch.Tensor, teacher: torch.Tensor, message: str):
    """Broadcasting would compare them all the same."""
    for figure in (agreement, mean_kl):
        with pytest.raises(ValueError, match=message):
            figure(student, teacher)


# Cost.


class Tied(nn.Module):
    """Two layers that share a weight, one of them frozen in eval mode, and a record of how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.second.requires_grad_(False)
        self.second.eval()
        self.calls: list[tuple[bool, bool, set[str]]] = []

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        self.calls.append((self.training, torch.is_grad_enabled(), set(inputs)))
        return self.second(self.first(inputs["x"]))


def test_parameters_count_once_and_frozen_ones_too():
    """9 shared weights, 2 x 3 biases; tied embeddings counted twice would add a third to a small BERT."""
    assert parameter_count(Tied()) == 15


def test_size_on_disk_counts_what_inference_needs(tmp_path: Path):
    """Optimizer states are twice the model, and the objective's projectors are no part of the student."""
    needed = {"config.json": 10, "model.safetensors": 1000, "tokenizer.json": 100, "tokenizer_config.json": 1}
    needed |= {"vocab.txt": 7, "spiece.model": 3}
    ignored = ["optimizer.pt", "training_args.bin", "pytorch_model.bin", "distillation_heads.safetensors", "README.md"]
    for name, size in {**needed, **dict.fromkeys([*ignored, "trainer_state.json"], 5000)}.items():
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "model.safetensors").write_bytes(b"x" * 5000)
    assert size_on_disk(tmp_path) == sum(needed.values())
    (tmp_path / "model.safetensors").unlink()
    assert size_on_disk(str(tmp_path)) == sum(needed.values()) - 1000 + 5000


def test_size_on_disk_adds_shards(tmp_path: Path):
    """A large teacher is saved in parts."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    for name in names:
        (tmp_path / name).write_bytes(b"x" * 10)
    assert size_on_disk(tmp_path) == 30


def test_size_of_a_folder_without_weights_is_refused(tmp_path: Path):
    """0 MB in a table would be read as a result."""
    (tmp_path / "config.json").touch()
    with pytest.raises(ValueError, match=r"found \['config.json'\]"):
        size_on_disk(tmp_path)
    with pytest.raises(ValueError, match="found no file"):
        size_on_disk(tmp_path / "nowhere")


def test_throughput_is_the_median_of_timed_passes(monkeypatch: pytest.MonkeyPatch):
    """5 samples in 1, 5 and 2 seconds: the slow pass and the warm-up (100 s) must not count."""
    clock = iter([0, 100, 200, 201, 300, 305, 400, 402])
    monkeypatch.setattr(measurement.time, "perf_counter", lambda: next(clock))
    model = Tied()
    batches = [{"x": torch.zeros(3, 3), "labels": torch.zeros(3)}, {"x": torch.zeros(2, 3)}]
    speed = samples_per_second(model, batches, repeats=3, warmup=1)
    assert speed.repeats == (5.0, 1.0, 2.5)
    assert speed.samples_per_second == 2.5
    assert (speed.device, speed.threads) == ("cpu", torch.get_num_threads())
    assert model.calls == [(False, False, {"x"})] * 8


def test_throughput_puts_every_mode_back():
    """`model.train()` afterwards would thaw a part that the user froze in eval mode, also when a pass fails."""
    model = Tied()
    samples_per_second(model, [{"x": torch.zeros(1, 3)}], repeats=1)
    assert (model.training, model.first.training, model.second.training) == (True, True, False)
    with pytest.raises(KeyError):
        samples_per_second(model, [{"y": torch.zeros(1, 3)}])
    assert (model.training, model.first.training, model.second.training) == (True, True, False)


@pytest.mark.parametrize("options", [{"batches": []}, {"repeats": 0}, {"warmup": -1}])
def test_nothing_to_measure_is_refused(options: dict):
    """The median of no pass is NaN with a warning."""
    with pytest.raises(ValueError, match="expected a batch"):
        samples_per_second(**{"model": Tied(), "batches": [{"x": torch.zeros(1, 3)}], **options})


@pytest.mark.gpu
def test_throughput_waits_for_the_device():
    """Kernels are queued: without waiting, a large product seems to take as long as a small one."""
    model = nn.Linear(8192, 8192, bias=False).cuda()
    rows = {size: [{"input": torch.zeros(size, 8192)}] for size in (64, 16384)}
    seconds = {size: size / samples_per_second(model, batches).samples_per_second for size, batches in rows.items()}
    assert seconds[16384] > 20 * seconds[64]
