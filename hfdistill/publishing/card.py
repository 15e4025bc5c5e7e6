"""The model card of a student: README.md, written from the records in its folder alone.

A card tells what was measured and what was recorded; what no record tells is left out or said to be missing. A card
that somebody has edited is theirs, and is not written again unless asked for.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hfdistill.publishing.card_sections import (
    citation,
    costs,
    distillation,
    limitations,
    loading,
    own_metrics,
    results,
    summary,
    versions,
)
from hfdistill.publishing.folder import CARD, StudentFolder
from hfdistill.publishing.record import is_repository_name

logger = logging.getLogger(__name__)

_MARK = re.compile(r"<!-- hfdistill wrote this card \(([0-9a-f]{16})\)\. Once edited, it is not overwritten\. -->\n")
_DRAFTS = (  # what other libraries leave where no card was: nobody's own words
    "This model card has been generated automatically according to the information the Trainer had access to",
    "# Model Card for Model ID\n",
)
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
_CHOSEN = ("license", "language", "datasets")


def write_model_card(
    folder: str | Path,
    *,
    overwrite: bool = False,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    tags: Sequence[str] = (),
    datasets: Sequence[str] = (),
    base_model: str | None = None,
    model_name: str | None = None,
) -> str:
    """Write README.md into a student's folder, from the files there only.

    Args:
        folder: a saved student, with the records beside it that there are: distillation.json, results.json, onnx.json.
        overwrite: also where README.md is somebody's own, or was edited.
        license: the hub's identifier of it, "apache-2.0"; no record tells it.
        language: of the data, "en".
        tags: besides those of distillation.
        datasets: their names on the hub.
        base_model: name on the hub of the model that it was derived from; by default what the records tell.
        model_name: title; by default the folder's name.

    Returns:
        The card that now stands in the folder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no student, or a base model that is no name on the hub.
    """
    student, path = StudentFolder.read(folder), Path(folder) / CARD
    present = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not overwrite and not is_draft(present):
        logger.info("%s was edited and stays as it is. Pass overwrite=True to write it anew.", path)
        return present
    card = model_card(
        student,
        present,
        license=license,
        language=language,
        tags=tags,
        datasets=datasets,
        base_model=base_model,
        model_name=model_name,
    )
    path.write_text(card, encoding="utf-8")
    return card


def model_card(student: StudentFolder, previous: str = "", repository: str = "", **chosen: Any) -> str:
    """The text of a card.

    Args:
        student: what the folder holds.
        previous: an earlier card of ours, whose license, language, datasets, tags and name stay where none are given.
        repository: name on the hub under which it is published; "" where it is not known.
        chosen: license, language, tags, datasets, base_model, model_name as in `write_model_card`.

    Raises:
        ValueError: a base model that is no name on the hub.
    """
    before: Any = ModelCard(previous).data if _MARK.search(previous) else ModelCardData()
    folder, title = _folder_name(student.path), _TITLE.search(previous) if _MARK.search(previous) else None
    kept = title[1] if title is not None and title[1] != folder else ""
    name = chosen.get("model_name") or kept or repository.rpartition("/")[2] or folder
    data = _metadata(student, name, {**chosen, **_kept(before, chosen)})
    sections = [
        summary(student, name),
        loading(student, repository),
        results(student),
        costs(student),
        distillation(student),
        limitations(student),
        versions(student, version("hfdistill")),
        citation(student),
    ]
    body = "\n\n".join(section for section in sections if section) + "\n"
    head = f"---\n{data.to_yaml()}\n---\n"
    mark = f"<!-- hfdistill wrote this card ({_digest(head + body)}). Once edited, it is not overwritten. -->\n"
    return f"{head}{mark}\n{body}"


def is_draft(card: str) -> bool:
    """Whether a card is nobody's own: none, one of ours that was not edited, or what another library left."""
    mark = _MARK.search(card)
    if mark is not None:
        return _digest(card[: mark.start()] + card[mark.end() + 1 :]) == mark[1]
    return not card.strip() or any(draft in card for draft in _DRAFTS)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _folder_name(path: Path) -> str:
    """A title: the folder's name, with its arm's before a "seed-0"."""
    path = path.absolute()
    return f"{path.parent.name}-{path.name}" if path.name.startswith("seed-") else path.name


def _kept(before: Any, chosen: dict[str, Any]) -> dict[str, Any]:
    kept = {key: before.get(key) for key in _CHOSEN if not chosen.get(key)}
    return {**kept, "tags": [*(before.get("tags") or ()), *(chosen.get("tags") or ())]}


def _metadata(student: StudentFolder, name: str, chosen: dict[str, Any]) -> ModelCardData:
    base = chosen.get("base_model") or _recorded_base(student)
    if base and not is_repository_name(base):
        raise ValueError(
            f"base_model must be a name on the hub, as user/name, got {base!r}: the hub refuses a card with another. "
            "Leave it out for a model that is not there."
        )
    found = _evaluations(student)
    method = student.record.get("preset")
    taught = bool(student.record.get("teacher"))
    tags = [*(["knowledge-distillation"] if taught else []), "hfdistill", *([method] if method and taught else [])]
    relation: Any = {"base_model_relation": "adapter" if student.adapter else "finetune"} if base else {}
    return ModelCardData(
        license=chosen.get("license"),
        language=chosen.get("language"),
        library_name="peft" if student.adapter else "transformers",
        pipeline_tag=student.task or None,
        tags=[*tags, *(chosen.get("tags") or ())],
        datasets=list(chosen.get("datasets") or ()) or None,
        metrics=sorted({result.metric_type for result in found}) or None,
        base_model=base or None,
        model_name=name if found else None,
        eval_results=found or None,
        **relation,
    )


def _recorded_base(student: StudentFolder) -> str:
    """The hub's name of what the student was derived from: an adapter's base, the student's start, or its teacher."""
    if student.adapter:
        return student.base
    start, teacher = student.record.get("student", {}).get("base_model"), student.record.get("teacher")
    return next((origin["name"] for origin in (start, teacher) if origin and origin["place"] == "hub"), "")


def _evaluations(student: StudentFolder) -> list[EvalResult]:
    """The figures of these weights for the hub's model index, which needs to know task and data of each."""
    protocol = student.results.get("protocol", {})
    data, splits = protocol.get("data", {}), protocol.get("evaluation_rows", {})
    if not data.get("name") or not student.task:
        return []
    found = []
    for key, value in own_metrics(student).items():
        split, _, metric = key.rpartition("/")
        found.append(
            EvalResult(
                task_type=student.task,
                dataset_type=str(data["name"]),
                dataset_name=str(data["name"]),
                dataset_config=data.get("config"),
                dataset_split=split or data.get("evaluation_split") or next(iter(splits), None),
                metric_type=metric,
                metric_name=metric,
                metric_value=value,
            )
        )
    return found
