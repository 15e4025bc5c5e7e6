"""What is measured on one model, or on the outputs of a student and its teacher: likeness, size, speed.

Everything here is a plain function of what it is given. It trains nothing, loads no data and chooses no metric.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hfdistill.functional import logit_mse, soft_target_kl

_INFERENCE_FILES = (
    *("config.json", "generation_config.json", "adapter_config.json", "*processor_config.json", "chat_template*"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
)
_WEIGHT_FILES = (  # a folder may hold the same weights in both formats: from_pretrained reads the first
    ("model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_model.bin"),
)


# Does the student do what the teacher does?


def agreement(student_logits: Tensor | npt.ArrayLike, teacher_logits: Tensor | npt.ArrayLike) -> float:
    """Share of rows on which both choose the same class, in [0, 1]; for one output (K = 1) Pearson's r, in [-1, 1].

    Args:
        student_logits: (B, K), or (B,) for a single output.
        teacher_logits: The same shape.

    Raises:
        ValueError: The shapes differ, there is no row, or a logit is not finite.
    """
    student, teacher = _logit_pair(student_logits, teacher_logits)
    if student.shape[1] == 1:
        return _pearson(student[:, 0], teacher[:, 0])
    return (student.argmax(dim=1) == teacher.argmax(dim=1)).double().mean().item()


def mean_kl(student_logits: Tensor | npt.ArrayLike, teacher_logits: Tensor | npt.ArrayLike) -> float:
    """Mean over rows of KL(teacher || student) at temperature 1, in nats; for K = 1 the mean squared difference.

    Args and Raises as in `agreement`.
    """
    student, teacher = _logit_pair(student_logits, teacher_logits)
    if student.shape[1] == 1:
        return logit_mse(student, teacher).item()
    return max(0.0, soft_target_kl(student, teacher, temperature=1.0).item())  # rounding may end below 0


def _logit_pair(student_logits: Tensor | npt.ArrayLike, teacher_logits: Tensor | npt.ArrayLike) -> list[Tensor]:
    given = [x.detach() if isinstance(x, Tensor) else torch.tensor(x) for x in (student_logits, teacher_logits)]
    shapes = [tuple(x.shape) for x in given]
    pair = [x.to("cpu", torch.float64) for x in given]
    pair = [x[:, None] if x.ndim == 1 else x for x in pair]  # (B,) -> (B, 1)
    if pair[0].ndim != 2 or pair[0].shape != pair[1].shape or pair[0].numel() == 0:
        raise ValueError(
            f"expected logits (B, K) of one shape and at least one row, got {shapes[0]} (student) and {shapes[1]} "
            "(teacher). They are compared row by row, class by class; give both for the same examples, in the same "
            "order, and of token logits only the valid tokens, as rows."
        )
    if not all(x.isfinite().all() for x in pair):
        raise ValueError(
            "expected finite logits, got NaN or infinity. A comparison with them means nothing: look for a run that "
            "diverged, or leave masked classes out."
        )
    return pair


def _pearson(student: Tensor, teacher: Tensor) -> float:
    if (student == student[0]).all() or (teacher == teacher[0]).all():
        return 0.0  # undefined: a constant follows nothing
    student, teacher = student - student.mean(), teacher - teacher.mean()
    correlation = float(student @ teacher / (student.norm() * teacher.norm()))
    return min(1.0, max(-1.0, correlation))


# What does it cost?


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


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, trainable or not; a shared one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


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
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    inputs = [{name: x.to(device) for name, x in batch.items() if name != "labels"} for batch in batches]
    samples = sum(len(next(iter(batch.values()))) for batch in inputs)
    with _evaluating(model), torch.inference_mode():
        seconds = [_one_pass(model, inputs, device) for _ in range(warmup + repeats)][warmup:]
    speeds = tuple(samples / spent for spent in seconds)
    return Throughput(float(np.median(speeds)), speeds, str(device), torch.get_num_threads())


def _matches(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path.name, pattern) for pattern in patterns)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]  # a part may be frozen in eval mode: keep that
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _one_pass(model: nn.Module, inputs: Sequence[Mapping[str, Tensor]], device: torch.device) -> float:
    start = _now(device)
    for batch in inputs:
        model(**batch)
    return _now(device) - start


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)  # kernels are queued: without this only the queueing is timed
    return time.perf_counter()
