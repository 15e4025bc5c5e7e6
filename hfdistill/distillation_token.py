"""Give an image classifier a distillation token: a ViT or a DeiT as DeiT with two heads, its layers kept.

This module renames and doubles weights; it does not train, and it does not choose layers (see `students`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    PreTrainedModel,
    ViTForImageClassification,
)

_EMBEDDINGS = "deit.embeddings."
_TOKEN, _CLASS_TOKEN = f"{_EMBEDDINGS}distillation_token", f"{_EMBEDDINGS}cls_token"
_POSITIONS = f"{_EMBEDDINGS}position_embeddings"


def with_distillation_token(model: PreTrainedModel) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The same classifier with a distillation token and a head upon it, and the names of what was doubled for them.

    ViT and DeiT differ in names only: layers, norms and patches are the same. Where the model has no distillation
    token, it starts as the class token and its position as the class token's; the head upon it starts as the class
    token's. So both heads answer alike at first, and part when they learn from different answers. (Touvron et al.
    2021, DeiT, https://arxiv.org/abs/2012.12877, section 4, train from scratch and draw token and head at random.)

    Args:
        model: ViTForImageClassification, DeiTForImageClassification, or the class that is made, given back as it is.

    Returns:
        A DeiTForImageClassificationWithTeacher in evaluation mode, which shares the memory of `model`.

    Raises:
        ValueError: `model` is of another class.
    """
    if isinstance(model, DeiTForImageClassificationWithTeacher):
        return model, ()
    if not isinstance(model, ViTForImageClassification | DeiTForImageClassification):
        raise ValueError(
            "distillation_token=True needs a ViTForImageClassification or a DeiTForImageClassification as teacher, "
            f"got {type(model).__name__}: only their layers are those of DeiT, which has the token. Leave it out, or "
            "build DeiTForImageClassificationWithTeacher(DeiTConfig(...)) and pass it to DistillationTrainer as model."
        )
    weights, doubled = _weights(model.state_dict())
    values = {**model.config.to_dict(), "attn_implementation": model.config._attn_implementation}
    with torch.device("meta"):  # every weight is put in below, and the random generator stays as it is
        made = DeiTForImageClassificationWithTeacher(
            DeiTConfig(
                **{name: value for name, value in values.items() if name not in ("model_type", "architectures")}
            )
        )
    made.load_state_dict(weights, assign=True)
    return made.eval(), doubled  # type: ignore[no-untyped-call]


def _weights(source: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights under the names of the class that is made, and the names of those that were doubled."""
    named = {re.sub(r"^classifier\.", "cls_classifier.", re.sub(r"^vit\.", "deit.", name)): name for name in source}
    weights = {name: source[old] for name, old in named.items()}
    heads = [name for name in weights if name.startswith("cls_classifier.")]
    twice = {name.replace("cls_", "distillation_", 1): weights[name] for name in heads}
    if _TOKEN not in weights:
        positions = weights[_POSITIONS]
        twice[_TOKEN] = weights[_CLASS_TOKEN]
        twice[_POSITIONS] = torch.cat([positions[:, :1], positions], dim=1)  # (1, 1 + N, D) -> (1, 2 + N, D)
    return weights | twice, tuple(twice)
