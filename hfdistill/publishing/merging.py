"""A student that is an adapter of PEFT, merged into the model that it was trained on: a plain folder for anybody."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from hfdistill.measurement import parameter_count
from hfdistill.publishing.folder import ADAPTER, CARD, StudentFolder
from hfdistill.publishing.record import RECORD


def merged_student(student: StudentFolder, scratch: str | Path, model: nn.Module | None = None) -> StudentFolder:
    """Write a student with its adapter merged in; its processor, records and card go with it.

    The adapter's own folder stays as it is. An exported ONNX file, which was merged already, goes with it too.

    Args:
        student: the adapter's folder.
        scratch: an empty folder to write into.
        model: the PeftModel itself where it is in memory, which is not changed; None: base and adapter are loaded.

    Returns:
        The merged student's folder, below `scratch`.

    Raises:
        ValueError: the folder holds no adapter, or one that is not part of the layers' weights (virtual tokens), or
            the base that it was trained on cannot be loaded.
    """
    if not student.adapter:
        raise ValueError(
            f"{student.path} holds no adapter, so there is nothing to merge: it is a whole model. Leave merge_adapter "
            "out."
        )
    place = student.path.absolute()
    target = Path(scratch) / place.parent.name / place.name  # a card's title and arm are read off the folder's name
    whole: Any = _loaded(student) if model is None else copy.deepcopy(model)
    merged = _merged(whole, student)
    merged.save_pretrained(target)
    card = [student.path / CARD] if (student.path / CARD).is_file() else []
    for path in [*student.published, *card]:
        if path.name not in ADAPTER:
            shutil.copy(path, target / path.name)
    if student.record:
        facts = {**student.record["student"], "parameters": parameter_count(merged)}
        text = json.dumps({**student.record, "student": facts, "merged": True}, indent=2)
        (target / RECORD).write_text(text + "\n", encoding="utf-8")
    return StudentFolder.read(target)


def _merged(whole: Any, student: StudentFolder) -> Any:
    """The base with the adapter in its weights."""
    try:
        if not whole.active_peft_config.is_prompt_learning:
            return whole.merge_and_unload()
        reason = "puts virtual tokens before the text and changes no weight of the base"
    except (NotImplementedError, ValueError) as error:
        reason = str(error) or "PEFT has no way to add it to the weights"
    raise ValueError(
        f"the adapter in {student.path} ({student.adapter['peft_type']}) cannot be merged: {reason}. Publish the "
        "adapter by itself, which PeftModel.from_pretrained puts on its base; export to ONNX needs a kind that can be "
        "merged (LoRA, DoRA, IA3, OFT)."
    )


def _loaded(student: StudentFolder) -> nn.Module:
    """The PeftModel of a folder, its base loaded from where the adapter's configuration says it is."""
    from peft import PeftModel
    from transformers.models.auto import modeling_auto

    base, auto = student.adapter.get("base_model_name_or_path"), vars(modeling_auto).get(student.auto_class)
    if not base or auto is None:
        raise ValueError(
            f"{student.path} holds an adapter of {base or 'a model without a name'} with the head "
            f"{student.auto_class or 'unknown'}: the base cannot be loaded from that. Merge it where the model is in "
            "memory: trainer.push_to_hub(merge_adapter=True), or model.merge_and_unload().save_pretrained(folder)."
        )
    names = dict(enumerate(student.labels))
    classes = {"id2label": names, "label2id": {name: at for at, name in names.items()}} if names else {}
    try:
        whole, info = auto.from_pretrained(base, output_loading_info=True, trust_remote_code=False, **classes)
    except OSError as error:
        raise ValueError(
            f"the base {base!r} of the adapter in {student.path} cannot be loaded: {error}. Put it where the "
            "adapter's configuration names it."
        ) from error
    held = {name.removeprefix("base_model.model.") for name in load_file(student.path / ADAPTER[1])}
    if untrained := sorted(set(info["missing_keys"]) - held):
        raise ValueError(
            f"neither the base {base!r} nor the adapter in {student.path} holds {', '.join(untrained[:4])}, so the "
            "merged model would answer at random there. Train the adapter with modules_to_save=[...] for its head, or "
            "merge where the model is in memory."
        )
    model: nn.Module = PeftModel.from_pretrained(whole, student.path)
    return model
