"""What one model costs: parameters, size on disk, floating-point operations, latency and throughput of inference.

Everything here is a plain function of what it is given. It trains nothing, loads no data and chooses no metric. Memory
is measured in a process of its own: see `peak_memory`.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hfdistill.distributed.sharding import element_count

_INFERENCE_FILES = (
    *("config.json", "generation_config.json", "adapter_config.json", "*processor_config.json", "chat_template*"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
)
_WEIGHT_FILES = (  # a folder may hold the same weights in both formats: from_pretrained reads the first
    ("model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_model.bin"),
)


# How large is it?


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, trainable or not; a shared one counts once."""
    return sum(element_count(parameter) for parameter in model.parameters())


def size_on_disk(folder: str | Path) -> int:
    """Bytes of the files of a `save_pretrained` folder that inference needs: weights, configuration, tokenizer.

    Of weights in two formats only safetensors count, as it is what is loaded; optimizer states, the objective's
    own state, logs and checkpoint folders do not count.

    Raises:
        ValueError: The folder is not there, or holds no weights.
    """
    files = [path for path in Path(folder).iterdir() if path.is_file()] if Path(folder).is_dir() else []
    found = ([path for path in files if _matches(path, patterns)] for patterns in _WEIGHT_FILES)
    weights = next((paths for paths in found if paths), None)
    if weights is None:
        raise ValueError(
            f"expected weights (model.safetensors, an adapter, or pytorch_model.bin) in {folder}, found "
            f"{sorted(path.name for path in files) or 'no file'}. Pass the folder that save_pretrained wrote."
        )
    others = (path for path in files if _matches(path, _INFERENCE_FILES))
    return sum(path.stat().st_size for path in {*weights, *others})


def flops(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Floating-point operations of one row's forward pass, a multiply-add counted as 2, padding included.

    What counts is matrix products and convolutions, of attention too, whichever of eager and SDPA the model runs; not
    what is done element by element (activations, normalisation), which is a small share.

    Args:
        model: Called as `model(**row)`, in eval mode (put back afterwards), with attention by SDPA or eager.
        batch: Inputs by argument name; one row of it is run.

    Raises:
        ValueError: There is no row.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import, and a trainer needs the rest alone

    row = _resized(_inputs(model, batch), 1)
    # torch's counter knows not every fused attention kernel (not the CPU's): as plain products all are counted
    with _evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**row)
    return int(counter.get_total_flops())


# How fast is it?


@dataclass(frozen=True)
class Throughput:
    """Samples per second: the median over the repeats, each repeat, and where it was measured."""

    samples_per_second: float
    repeats: tuple[float, ...]
    device: str
    threads: int


@dataclass(frozen=True)
class Latency:
    """How long one batch takes: the median over the repeats, warm, and where it was measured.

    Args:
        runtime: what ran the model, "torch" or "onnxruntime".
        batch_size: rows.
        seconds: median of one forward pass of that many rows.
        repeats: each pass, in seconds.
        device: as torch names it.
        threads: of the processor that the runtime may use.
    """

    runtime: str
    batch_size: int
    seconds: float
    repeats: tuple[float, ...]
    device: str
    threads: int

    @property
    def samples_per_second(self) -> float:
        """Rows per second at this batch size."""
        return self.batch_size / self.seconds

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Latency:
        """Read what `dataclasses.asdict` and JSON made of a Latency; an equal one comes back.

        Raises:
            ValueError: A field is missing or unknown.
        """
        try:
            return cls(**{**record, "repeats": tuple(record["repeats"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"expected the fields of a Latency, got {str(record)[:200]}: {error}") from error


def samples_per_second(
    model: nn.Module, batches: Sequence[Mapping[str, Tensor]], repeats: int = 3, warmup: int = 1
) -> Throughput:
    """Measure inference on the model's device: eval mode (put back afterwards), no gradient, inputs already there.

    Labels are left out. How many threads torch uses is reported, not changed.

    Args:
        model: Called as `model(**batch)`.
        batches: Inputs by argument name, the first axis of each is the batch; padding counts as work.
        repeats: How often all batches are run and timed.
        warmup: How often they are run before that, untimed.

    Raises:
        ValueError: Nothing to measure.
    """
    if not batches or repeats < 1 or warmup < 0:
        raise ValueError(
            f"expected a batch, repeats >= 1 and warmup >= 0, got {len(batches)} batches, {repeats} and {warmup}."
        )
    device = _device(model)
    inputs = [_inputs(model, batch) for batch in batches]
    samples = sum(len(next(iter(batch.values()))) for batch in inputs)

    def run() -> None:
        for batch in inputs:
            model(**batch)

    with _evaluating(model), torch.inference_mode():
        seconds = _timed(run, device, repeats, warmup)
    speeds = tuple(samples / spent for spent in seconds)
    return Throughput(float(np.median(speeds)), speeds, str(device), torch.get_num_threads())


def latencies(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    sizes: Sequence[int] = (1, 8, 32),
    repeats: int = 10,
    warmup: int = 2,
) -> list[Latency]:
    """Time one forward pass at several batch sizes, under the conditions of `samples_per_second`.

    Args:
        model: Called as `model(**rows)`, on its own device.
        batch: Real inputs by argument name; their rows are repeated, or cut, to each size. Padding counts as work.
        sizes: Rows per pass.
        repeats: Timed passes per size, of which the median counts.
        warmup: Passes before that, untimed.

    Raises:
        ValueError: Nothing to measure.
    """
    inputs = _inputs(model, batch)
    with _evaluating(model), torch.inference_mode():
        return timed_passes(
            lambda rows: model(**rows), inputs, sizes, repeats, warmup, runtime="torch", device=_device(model)
        )


def timed_passes(
    run: Callable[[dict[str, Tensor]], object],
    batch: Mapping[str, Tensor],
    sizes: Sequence[int],
    repeats: int,
    warmup: int,
    *,
    runtime: str,
    device: torch.device,
    threads: int | None = None,
) -> list[Latency]:
    """Time any runtime's pass at several batch sizes; `latencies` is this for a torch model.

    Args:
        run: One pass over the rows it is given, which are prepared beforehand.
        batch: See `latencies`.
        sizes: See `latencies`.
        repeats: See `latencies`.
        warmup: See `latencies`.
        runtime: Its name.
        device: Where it runs; passes on another than the processor are waited for.
        threads: That it may use; None: as many as torch.

    Raises:
        ValueError: Nothing to measure.
    """
    if not sizes or min(sizes) < 1 or repeats < 1 or warmup < 0:
        raise ValueError(
            f"expected sizes of at least one row, repeats >= 1 and warmup >= 0, got {list(sizes)}, {repeats} and "
            f"{warmup}. The median of no pass is no latency."
        )
    found = []
    for size in sizes:
        seconds = tuple(_timed(partial(run, _resized(batch, size)), device, repeats, warmup))
        count = torch.get_num_threads() if threads is None else threads
        found.append(Latency(runtime, size, float(np.median(seconds)), seconds, str(device), count))
    return found


def machine_name(device: torch.device | str = "cpu") -> str:
    """Where figures were measured: the processor, its cores that this process may use, torch's threads, and the GPU.

    Args:
        device: What was measured on; a GPU is named.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    threads = torch.get_num_threads()
    name = f"{_processor()}, {cores} core{'s' * (cores != 1)}, {threads} torch thread{'s' * (threads != 1)}"
    device = torch.device(device)
    return f"{name}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else name


def _processor() -> str:
    """The processor's name as Linux shows it, or as much as `platform` knows."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8", errors="replace").splitlines() if facts.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _matches(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path.name, pattern) for pattern in patterns)


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model reads, on its device: a loss computed from labels is no part of inference."""
    return {name: x.to(_device(model)) for name, x in batch.items() if name != "labels"}


def _resized(batch: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    rows = min((len(x) for x in batch.values()), default=0)
    if rows == 0:
        raise ValueError(
            f"expected a batch of at least one row, got { ({name: tuple(x.shape) for name, x in batch.items()}) }. "
            "Inference is measured on real inputs; pass what the model's forward takes."
        )
    return {name: x[torch.arange(size, device=x.device) % rows] for name, x in batch.items()}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]  # a part may be frozen in eval mode: keep that
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _timed(run: Callable[[], object], device: torch.device, repeats: int, warmup: int) -> list[float]:
    """Seconds of each of `repeats` passes, after `warmup` untimed ones."""
    seconds = []
    for _ in range(warmup + repeats):
        start = _now(device)
        run()
        seconds.append(_now(device) - start)
    return seconds[warmup:]


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)  # kernels are queued: without this only the queueing is timed
    return time.perf_counter()
