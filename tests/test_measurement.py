"""What a model costs: size by hand, operations against their formula, speed against a clock that is set."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_models import FAMILIES, image_inputs, text_inputs, toy_bert, toy_resnet, toy_vit

from hfdistill import measurement
from hfdistill.measurement import (
    Latency,
    flops,
    latencies,
    machine_name,
    parameter_count,
    samples_per_second,
    size_on_disk,
    timed_passes,
)


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


def test_latency_is_the_median_of_warm_passes_at_each_size(monkeypatch: pytest.MonkeyPatch):
    """Per size 100 s to warm up, then 1, 5 and 2 s; rows of the batch are repeated or cut, and labels left out."""
    once = (0, 100, 200, 201, 300, 305, 400, 402)
    clock = iter([*once, *(1000 + moment for moment in once)])
    monkeypatch.setattr(measurement.time, "perf_counter", lambda: next(clock))
    model = Tied()
    seen: list[list[float]] = []

    def see(module: nn.Module, args: tuple, inputs: dict[str, torch.Tensor]) -> None:
        seen.append(inputs["x"][:, 0].tolist())

    model.register_forward_pre_hook(see, with_kwargs=True)
    batch = {"x": torch.arange(3.0)[:, None].expand(3, 3), "labels": torch.zeros(3)}
    found = latencies(model, batch, sizes=(2, 4), repeats=3, warmup=1)
    threads = torch.get_num_threads()
    assert found == [Latency("torch", size, 2.0, (1.0, 5.0, 2.0), "cpu", threads) for size in (2, 4)]
    assert [latency.samples_per_second for latency in found] == [1.0, 2.0]
    assert seen == [[0.0, 1.0]] * 4 + [[0.0, 1.0, 2.0, 0.0]] * 4
    assert set(map(str, model.calls)) == {"(False, False, {'x'})"}
    assert (model.training, model.second.training) == (True, False)


def test_another_runtime_is_timed_in_the_same_way():
    """An export is compared with torch: the passes must be the same ones, its name and threads told."""
    seen = []
    found = timed_passes(
        lambda rows: seen.append(len(rows["x"])),
        {"x": torch.zeros(2, 3)},
        (1, 3),
        repeats=2,
        warmup=1,
        runtime="onnxruntime",
        device=torch.device("cpu"),
        threads=4,
    )
    assert seen == [1, 1, 1, 3, 3, 3]
    assert [(one.runtime, one.batch_size, one.threads, len(one.repeats)) for one in found] == [
        ("onnxruntime", 1, 4, 2),
        ("onnxruntime", 3, 4, 2),
    ]


@pytest.mark.parametrize("options", [{"sizes": ()}, {"sizes": (0,)}, {"repeats": 0}, {"warmup": -1}])
def test_no_pass_to_time_is_refused(options: dict):
    """The median of no pass is NaN with a warning, and a batch of no rows is no batch."""
    with pytest.raises(ValueError, match="expected sizes of at least one row"):
        latencies(Tied(), {"x": torch.zeros(1, 3)}, **options)


@pytest.mark.parametrize("batch", [{}, {"x": torch.zeros(0, 3)}, {"labels": torch.zeros(3)}])
def test_a_batch_without_inputs_is_refused(batch: dict):
    """A batch of nothing takes no time, which would be the fastest model of all."""
    for figure in (latencies, flops):
        with pytest.raises(ValueError, match="at least one row"):
            figure(Tied(), batch)


def test_a_latency_survives_json():
    """Reports are put together from records; a list where a tuple was makes equal latencies unequal."""
    latency = Latency("torch", 8, 0.5, (0.4, 0.5, 0.6), "cpu", 2)
    assert Latency.from_record(json.loads(json.dumps(asdict(latency)))) == latency
    for record in ({}, {**asdict(latency), "speed": 1}, {**asdict(latency), "repeats": 3}, None):
        with pytest.raises(ValueError, match="fields of a Latency"):
            Latency.from_record(record)


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_of_attention_count_whichever_backend_runs_it(family: str):
    """The processor's fused attention is unknown to torch's counter: SDPA would look cheaper than eager."""
    make, inputs = FAMILIES[family]
    batch = inputs()
    eager = flops(make(attn_implementation="eager"), batch)
    assert flops(make(), batch) == eager > 0
    assert flops(make(), {name: x[:1] for name, x in batch.items()}) == eager  # of one row


def test_operations_by_hand():
    """Per layer 4 N D² multiply-adds for queries to output, 2 N² D for attention, 4 N D² for an MLP twice as wide."""
    layers, width, classes, tokens, patch = 2, 16, 3, 5, 3 * 4 * 4
    per_layer = 8 * tokens * width**2 + 2 * tokens**2 * width
    expected = 2 * (4 * patch * width + layers * per_layer + width * classes)
    assert flops(toy_vit(layers=layers, width=width, classes=classes), image_inputs(3)) == expected


def test_operations_of_convolutions_count():
    """A convolutional teacher would look free."""
    assert flops(toy_resnet(), image_inputs(2)) > 2 * 8 * 3 * 7 * 7  # more than one output place of the first layer


def test_counting_operations_changes_nothing():
    """A model left in eval mode, or with another attention, would train and answer otherwise from then on."""
    model = toy_bert().train()
    flops(model, text_inputs())
    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_the_machine_is_named(monkeypatch: pytest.MonkeyPatch):
    """A latency without the processor and its threads cannot be compared with any other."""
    threads = torch.get_num_threads()
    assert machine_name().endswith(f"{threads} torch thread{'s' * (threads != 1)}")
    monkeypatch.setattr(measurement.torch.cuda, "get_device_name", lambda device: f"a GPU, {device}")
    assert machine_name("cuda:1") == f"{machine_name()}, a GPU, cuda:1"
    monkeypatch.setattr(measurement.Path, "is_file", lambda path: False)  # no /proc: another system
    assert machine_name()[0] not in ", "


@pytest.mark.gpu
def test_throughput_waits_for_the_device():
    """Kernels are queued: without waiting, a large product seems to take as long as a small one."""
    model = nn.Linear(8192, 8192, bias=False).cuda()
    rows = {size: [{"input": torch.zeros(size, 8192)}] for size in (64, 16384)}
    seconds = {size: size / samples_per_second(model, batches).samples_per_second for size, batches in rows.items()}
    assert seconds[16384] > 20 * seconds[64]
