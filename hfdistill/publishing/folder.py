"""What lies in a saved student's folder: the files that make up the student, and the records beside it.

A folder is read here, never written, and no weights are loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hfdistill.publishing.record import RECORD, is_repository_name

CARD = "README.md"
"""Name of the model card."""

MODEL = ("config.json", "model*.safetensors", "model.safetensors.index.json")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
EXPORT = ("model.onnx", "model.onnx.data", "onnx.json")
RECORDS = (RECORD, "results.json")
PROCESSOR = (
    *("generation_config.json", "*processor_config.json", "chat_template*", "tokenizer*", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.*", "merges.txt", "*.model"),
)

_RECORDED = ("teacher", "student", "preset", "objective", "arguments", "training")


@dataclass(frozen=True)
class StudentFolder:
    """A saved student and its records; a record that is not there is empty.

    Args:
        path: the folder.
        config: config.json; empty for an adapter.
        adapter: adapter_config.json of PEFT; empty for a whole model.
        record: distillation.json, see `training_record`.
        results: results.json: the comparison that the student is part of.
        export: onnx.json.
    """

    path: Path
    config: Mapping[str, Any]
    adapter: Mapping[str, Any]
    record: Mapping[str, Any]
    results: Mapping[str, Any]
    export: Mapping[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> StudentFolder:
        """Read a folder.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it holds no student, or a record that is not JSON.
        """
        path = Path(folder)
        if not path.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}. Give the one that a student was saved in.")
        names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
        is_adapter = set(ADAPTER) <= set(names)
        if not is_adapter and not all(any(fnmatchcase(name, part) for name in names) for part in MODEL[:2]):
            raise ValueError(
                f"{folder} holds no student: expected a config.json and safetensors weights, or an adapter of PEFT "
                f"with its adapter_config.json, found {names or 'no file'}. Give the folder that save_model or "
                "save_pretrained wrote."
            )
        record, results, export = (_read(path / name) if name in names else {} for name in (*RECORDS, "onnx.json"))
        if record and not set(_RECORDED) <= set(record):
            raise ValueError(
                f"{path / RECORD} is not what the trainer writes: it lacks {sorted(set(_RECORDED) - set(record))}. "
                "Save the student again, or remove the file: the card then says that nothing is recorded."
            )
        config = {} if is_adapter else _read(path / "config.json")
        return cls(path, config, _read(path / ADAPTER[0]) if is_adapter else {}, record, results, export)

    @property
    def published(self) -> list[Path]:
        """The files that make up the student, its processor, its export and its records; the card is not among them.

        Checkpoints, optimizer, the objective's state, predictions and pickles are left out, and so is all else that
        somebody may have put there.
        """
        wanted = (*(ADAPTER if self.adapter else MODEL), *PROCESSOR, *EXPORT, *RECORDS)
        files = (path for path in self.path.iterdir() if path.is_file())
        return sorted(path for path in files if any(fnmatchcase(path.name, pattern) for pattern in wanted))

    @property
    def base(self) -> str:
        """The hub's name of the model that an adapter belongs to; "" where that is not on the hub, or known."""
        name = self.adapter.get("base_model_name_or_path") or ""
        return name if is_repository_name(name) and not Path(name).exists() else ""

    @property
    def auto_class(self) -> str:
        """Name of the Auto class that loads the student; without a record of the architecture itself, or "" ."""
        known = str(self.record.get("student", {}).get("auto_class", ""))
        return known or next(iter(self.config.get("architectures") or ()), "")

    @property
    def task(self) -> str:
        """The hub's name of the task, "" where it is not known: "text-classification"."""
        kind = re.search(r"For([A-Z]\w+?)(WithTeacher)?$", self.auto_class)
        return TASKS.get(kind[1], "") if kind else ""

    @property
    def labels(self) -> list[str]:
        """Names of the classes, by index."""
        names: Mapping[str, str] = self.config.get("id2label") or {}
        recorded: Sequence[str] = self.record.get("student", {}).get("labels") or ()
        return [names[index] for index in sorted(names, key=int)] or list(recorded)


TASKS = {
    "CausalLM": "text-generation",
    "ImageClassification": "image-classification",
    "MaskedLM": "fill-mask",
    "MultipleChoice": "multiple-choice",
    "QuestionAnswering": "question-answering",
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
}
"""Kind of head, as transformers names it -> the hub's task."""


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Save the student again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold names with values, got {type(content).__name__}. Save the student again.")
    return content
