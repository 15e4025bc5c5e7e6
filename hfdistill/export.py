"""A student as ONNX: written by torch's exporter, and kept only if it answers real inputs as the student does.

The file takes batches of any size, and texts of any length that the model takes. It is compared with the student in
full precision, whatever precision that was saved in. Quantisation and other runtimes are not done here.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfdistill.anatomy import Anatomy
from hfdistill.measurement import Latency, machine_name, timed_passes
from hfdistill.publishing.folder import StudentFolder
from hfdistill.publishing.merging import merged_student
from hfdistill.saved_model import load_saved

FILE = "model.onnx"
RECORD = "onnx.json"
SAMPLE_BATCH = "sample_batch.safetensors"
"""Real inputs beside a student, or two folders up, where a recipe leaves them."""

TOLERANCE = 1e-4
"""Largest difference of a logit that is accepted; two runtimes in float32 differ by about 1e-6 times its size."""

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_HARMLESS = (  # torch 2.13's exporter of itself, and that all inputs share one axis of rows and one of tokens
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    (UserWarning, r"# The axis name: \w+ will not be used"),
)


@dataclass(frozen=True)
class OnnxExport:
    """A student as ONNX, and what shows that it is one.

    Args:
        file: where it is; weights beyond 2 GB lie beside it (`model.onnx.data`).
        opset: ONNX's version of its operators.
        rows: of real inputs that were compared.
        tolerance: largest difference of a logit that was accepted.
        largest_difference: that was found, between ONNX Runtime and torch, over all that was compared.
        latencies: of ONNX Runtime by batch size, on the real inputs.
        machine: where these were measured.
        versions: of the packages that wrote and ran it.
    """

    file: Path
    opset: int
    rows: int
    tolerance: float
    largest_difference: float
    latencies: tuple[Latency, ...]
    machine: str
    versions: Mapping[str, str]

    def __str__(self) -> str:
        speeds = (f"{entry.batch_size}: {1000 * entry.seconds:.1f} ms" for entry in self.latencies)
        return (
            f"{self.file}: opset {self.opset}, at most {self.largest_difference:.1e} from torch on {self.rows} rows "
            f"(tolerance {self.tolerance:.0e}); ONNX Runtime by batch size: {', '.join(speeds)} ({self.machine})"
        )

    def record(self) -> dict[str, Any]:
        """As plain values for JSON; of the file its name."""
        return {**asdict(self), "file": self.file.name, "versions": dict(self.versions)}


def export_onnx(
    folder: str | Path,
    output: str | Path | None = None,
    batch: Mapping[str, Tensor] | None = None,
    tolerance: float = TOLERANCE,
    opset: int | None = None,
    sizes: Sequence[int] = (1, 8, 32),
) -> OnnxExport:
    """Write a saved student as ONNX, hold it to the student on real inputs, and measure it.

    Compared are all rows, one row alone, and, for texts, fewer tokens. A file beyond the tolerance is never put in
    place; one that was there stays. A PEFT adapter is merged into its base first. Beside the file lies onnx.json, what
    is returned as JSON.

    Args:
        folder: of a student that classifies, as `save_model` or `save_pretrained` wrote it.
        output: file to write; None: model.onnx in `folder`.
        batch: real inputs by argument name, (B, N) token ids and masks or (B, C, H, W) pixels; None: the sample that a
            recipe leaves beside its students.
        tolerance: largest absolute difference of a logit that is accepted.
        opset: ONNX's version of operators; None: what torch writes by itself.
        sizes: rows per pass that are timed.

    Raises:
        ImportError: ONNX or its runtime is not installed.
        FileNotFoundError: no folder.
        ValueError: no student, no inputs, a student that cannot be exported, or a file that answers differently.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(f"export_onnx needs {', '.join(missing)}: pip install 'hfdistill[export]'.")
    folder = Path(folder)
    target = _target(folder if output is None else Path(output), output is None, tolerance)
    student = _loaded(folder)
    inputs = _known(student, _sample(folder) if batch is None else batch)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as room:
        draft = Path(room) / target.name
        written = _write(student, inputs, draft, opset)
        session = _Session(draft)
        difference = max(session.difference(student, view) for view in _views(inputs))
        if not difference <= tolerance:
            raise ValueError(
                f"the ONNX file's logits differ from those of {type(student).__name__} by {difference:.2e}, more than "
                f"the tolerance of {tolerance:.0e}, on {_described(inputs)}. It would not answer as the student does, "
                "so it was not kept. Try another opset, or pass tolerance=... if the difference is of no account."
            )
        latencies = session.latencies(inputs, sizes)
        target.with_name(f"{target.name}.data").unlink(missing_ok=True)  # weights of a larger model that was here
        for file in Path(room).iterdir():
            file.replace(target.with_name(file.name))
    rows = len(next(iter(inputs.values())))
    versions = {name: version(name) for name in (*_PACKAGES, "torch", "transformers")}
    found = OnnxExport(target, written, rows, tolerance, difference, tuple(latencies), machine_name(), versions)
    target.with_name(RECORD).write_text(json.dumps(found.record(), indent=2) + "\n", encoding="utf-8")
    return found


def read_batch(path: str | Path) -> dict[str, Tensor]:
    """Read inputs by argument name from a safetensors file.

    Raises:
        ValueError: there is no such file, or it is another kind of file.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}. Give a safetensors file with the inputs of a batch, by name.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no safetensors file ({error}). Write the inputs of a batch by safetensors.torch.save_file."
        ) from error


def _target(place: Path, inside: bool, tolerance: float) -> Path:
    """The file to write: in a student's folder by its usual name, or the one that was named."""
    target = place / FILE if inside else place
    if target.is_dir() or not 0 < tolerance < float("inf"):
        raise ValueError(
            f"export_onnx needs a file to write and a tolerance above 0, got {target}"
            f"{' (a folder)' if target.is_dir() else ''} and {tolerance}. Name a file, such as {target / FILE}; the "
            f"usual tolerance is {TOLERANCE:.0e}."
        )
    return target


def _loaded(folder: Path) -> PreTrainedModel:
    """The student in full precision, an adapter merged into its base.

    Its attention is eager, which is what the file spells out: torch's exporter cannot write every fused one (Swin).
    """
    saved = StudentFolder.read(folder)
    if not saved.adapter:
        return load_saved(folder, attn_implementation="eager")
    with TemporaryDirectory() as scratch:
        return load_saved(merged_student(saved, scratch).path, attn_implementation="eager")


def _sample(folder: Path) -> dict[str, Tensor]:
    places = [folder / SAMPLE_BATCH, folder.resolve().parent.parent / SAMPLE_BATCH]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(
            f"no {SAMPLE_BATCH} lies in {folder} or two folders above it, where a recipe leaves one. The file is "
            "compared with the student on real inputs: pass batch=..., inputs by argument name (--batch FILE)."
        )
    return read_batch(found)


def _known(student: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs without labels, checked."""
    names = Anatomy.of(student).input_names
    inputs = {name: value.cpu() for name, value in batch.items() if name != "labels"}
    inputs = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
    rows = {len(value) if value.dim() else 0 for value in inputs.values()}
    if set(inputs) - set(names) or len(rows) != 1 or 0 in rows:
        raise ValueError(
            f"expected tensors of as many rows each, named as what {type(student).__name__} takes "
            f"({', '.join(names)}), got {_described(inputs)}. The file will take the same; leave out what the student "
            "does not read."
        )
    return inputs


def _described(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items()) or "none"


def _of_tokens(value: Tensor) -> bool:
    return value.dim() == 2 and not value.is_floating_point()


def _views(inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """All rows; one; and for texts half of the tokens: an axis that was written as a constant shows there."""
    yield dict(inputs)
    yield {name: value[:1] for name, value in inputs.items()}
    tokens = next((value.shape[1] for value in inputs.values() if _of_tokens(value)), 0)
    if tokens > 1:
        half = slice(0, tokens // 2)
        mask = inputs.get("attention_mask")
        if mask is not None and not mask[:, half].any(dim=1).all():  # padded on the left: nothing real would be left
            half = slice(tokens - tokens // 2, tokens)
        yield {name: value[:, half] if _of_tokens(value) else value for name, value in inputs.items()}


class _Logits(nn.Module):
    """A student whose inputs are given by position and whose only output is its logits, as the file's are."""

    def __init__(self, student: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.student = student
        self.names = tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.student(**dict(zip(self.names, inputs, strict=True)))["logits"]
        return logits


def _write(student: PreTrainedModel, inputs: Mapping[str, Tensor], file: Path, opset: int | None) -> int:
    """Write the file; its opset."""
    tokens = next((value.shape[1] for value in inputs.values() if _of_tokens(value)), 0)
    rows = 3 if tokens == 2 else 2  # more than one, and another number than tokens: equal axes would become one
    few = {name: value[torch.arange(rows) % len(value)] for name, value in inputs.items()}
    axes = tuple({0: "batch", 1: "tokens"} if _of_tokens(value) else {0: "batch"} for value in few.values())
    with warnings.catch_warnings():
        for category, message in _HARMLESS:
            warnings.filterwarnings("ignore", message=message, category=category)
        try:
            program = torch.onnx.export(
                _Logits(student, list(few)).eval(),
                tuple(few.values()),
                dynamo=True,
                verbose=False,
                input_names=list(few),
                output_names=["logits"],
                dynamic_shapes=(axes,),
                opset_version=opset,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).splitlines()[0]  # torch's own text is advice to its developers
            raise ValueError(
                f"torch {torch.__version__} cannot write {type(student).__name__} as ONNX: {reason} Another release "
                "of torch or another opset may; the student itself is as it was."
            ) from error
    if program is None:  # only torch's older exporter returns nothing
        raise ValueError(f"torch wrote no ONNX program of {type(student).__name__}.")
    for part in (program.model.graph, *program.model.functions.values()):
        for node in part:
            node.metadata_props.clear()  # stack traces, with the folders of this machine
    written = int(program.model.opset_imports[""])
    if opset not in (None, written):
        raise ValueError(
            f"torch {torch.__version__} wrote opset {written} where {opset} was asked for: it cannot convert "
            f"{type(student).__name__} that far. Leave opset out, or ask for {written} or more."
        )
    program.save(file)
    return written


class _Session:
    """A file in ONNX Runtime, on the processor, with as many threads as torch."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        self.threads = torch.get_num_threads()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Mapping[str, Tensor]) -> Any:
        """The logits."""
        return self._session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]

    def latencies(self, inputs: Mapping[str, Tensor], sizes: Sequence[int]) -> list[Latency]:
        """How long a pass takes, by batch size."""
        device = torch.device("cpu")
        return timed_passes(self.run, inputs, sizes, 10, 2, runtime="onnxruntime", device=device, threads=self.threads)

    def difference(self, student: PreTrainedModel, inputs: Mapping[str, Tensor]) -> float:
        """The largest difference to the student's logits, infinite where either is no number."""
        with torch.inference_mode():
            expected = student(**inputs)["logits"].numpy()
        try:
            gap = np.abs(self.run(inputs) - expected)
        except Exception as error:  # ONNX Runtime's own have no base but this
            raise ValueError(f"ONNX Runtime cannot run the file on {_described(inputs)}: {error}") from error
        return float(gap.max()) if np.isfinite(gap).all() else float("inf")
