"""What an experiment found, as plain values, and the files that keep it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hfdistill.names import without_secrets
from hfdistill.report.results import CONTROL, ArmResult, results_table

_LOCAL = ("arguments", "recipe")  # of the protocol: paths of this machine, which a published student must not tell


@dataclass
class Comparison:
    """What an experiment found.

    Args:
        metric: the figure that the table shows.
        teacher: the teacher's own row.
        arms: one row per arm.
        protocol: what was run, for the record: data, arguments, versions, machine.
        folders: arm -> folder of each seed's student.
        labels: names of the classes, by index; empty for regression.
        teacher_folder: folder or hub name that the teacher was loaded from; empty where it was not.
    """

    metric: str
    teacher: ArmResult
    arms: list[ArmResult]
    protocol: dict[str, Any] = field(default_factory=dict)
    folders: dict[str, list[str]] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    teacher_folder: str = ""

    def table(self) -> str:
        """The comparison as a Markdown table, the teacher first."""
        return results_table(self.arms, self.metric, self.teacher)

    def save(self, folder: str | Path) -> None:
        """Write results.json and results.md into `folder`."""
        content = self._content([arm.name for arm in self.arms], self.protocol)
        whole = {**content, "teacher_folder": self.teacher_folder, "folders": self.folders}
        write_json(Path(folder) / "results.json", whole)
        (Path(folder) / "results.md").write_text(self.table() + "\n", encoding="utf-8")

    def save_beside_students(self) -> None:
        """Write results.json beside every student: teacher, control and its own arm, without paths of this machine."""
        for arm, folders in self.folders.items():
            protocol = {name: value for name, value in self.protocol.items() if name not in _LOCAL}
            arms = protocol.get("arms", {})
            protocol["arms"] = {name: arms[name] for name in arms if name in (CONTROL, arm)}
            for folder in folders:
                write_json(Path(folder) / "results.json", self._content([CONTROL, arm], protocol))

    def _content(self, arms: list[str], protocol: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "teacher": asdict(self.teacher),
            "arms": [asdict(arm) for arm in self.arms if arm.name in arms],
            "protocol": protocol,
            "labels": self.labels,
        }


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, making its folder; what JSON does not know is written as text, tokens are not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(without_secrets(json.dumps(content, indent=2, default=str)) + "\n", encoding="utf-8")
