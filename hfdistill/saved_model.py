"""A saved classifier, loaded by what its folder says it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from hfdistill.model_loading import explained_loading

ADAPTER = "adapter_config.json"
"""The file that makes a folder a PEFT adapter's."""


def load_saved(folder: str | Path, **loading: Any) -> PreTrainedModel:
    """Load the model of a `save_pretrained` folder with the head that it was saved with, for inference.

    Args:
        folder: where it is.
        loading: further arguments of `from_pretrained`; full precision without them.

    Raises:
        ValueError: see `auto_class_of`.
    """
    options = {"dtype": torch.float32, "trust_remote_code": False, **loading}
    kind = auto_class_of(folder)
    with explained_loading(folder, "model"):
        model: PreTrainedModel = kind.from_pretrained(folder, **options)
    nn.Module.eval(model)
    return model


def auto_class_of(folder: str | Path) -> Any:
    """The Auto class that loads the model of a folder, by the class that its `config.architectures` names.

    Raises:
        ValueError: the folder holds no model whose class is known, or an adapter alone.
    """
    from transformers.models.auto import modeling_auto

    folder = Path(folder)
    if (folder / ADAPTER).is_file():
        raise ValueError(
            f"{folder} holds an adapter, not a whole model: what it was trained on lies elsewhere. Merge it into its "
            "base (merge_and_unload) and save that."
        )
    if not (folder / "config.json").is_file():
        raise ValueError(f"expected the folder of a saved model, found no config.json in {folder}.")
    with explained_loading(folder, "model"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    names = config.architectures or []
    for auto in vars(modeling_auto).values():
        mapping = vars(auto).get("_model_mapping") if isinstance(auto, type) else None
        found = mapping.get(type(config), ()) if mapping is not None else ()
        kinds = found if isinstance(found, tuple) else (found,)
        if kinds and auto.__name__ != "AutoModelForPreTraining" and {kind.__name__ for kind in kinds} & set(names):
            return auto
    raise ValueError(
        f"no Auto class loads {names or 'a model without `architectures`'} of type {config.model_type!r}. Save the "
        "model by save_pretrained, which writes the name of its class."
    )
