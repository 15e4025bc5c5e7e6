"""Under which names a teacher and a row of a batch are found again: digests of all that decides what is shown.

A row is named by its content, not by its place in a data set. So it is found again in any order, batch, process, run,
subset or split, padded to any length, and a row that was tokenized in another way is another row: a changed teacher,
tokenizer, length or data set can only be a miss.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hfdistill.anatomy import base_model
from hfdistill.distributed.sharding import class_of, is_sharded
from hfdistill.teacher_cache.shards import KEY_BYTES
from hfdistill.teacher_tokens import own_inputs

_SAYS_NOTHING = frozenset(  # of a configuration: names and habits, by which no number is computed
    (
        *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "architectures", "auto_map"),
        *("dtype", "torch_dtype", "_attn_implementation", "attn_implementation", "_experts_implementation"),
        *("id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params"),
        *("output_attentions", "output_hidden_states", "return_dict", "use_cache"),
        *("base_model_name_or_path", "revision", "peft_version", "inference_mode", "task_type", "auto_mapping"),
    )
)
_WRAPPED = ("base_model.model.", ".base_layer", ".original_module")
"""What PEFT adds to the names of a base's own parameters."""

_State = tuple[object, ...]
_named: WeakKeyDictionary[nn.Module, tuple[_State, str]] = WeakKeyDictionary()


def teacher_key(
    model: nn.Module, label_map: Sequence[int] | None = None, parameters: Iterable[nn.Parameter] | None = None
) -> str:
    """Name a teacher by its content: weights, buffers, configuration, adapter and order of the labels.

    The same model has the same name after it was saved and loaded again, on another device, and under another
    attention implementation; in another precision it has another. A model that did not change is digested once.

    Args:
        model: a PreTrainedModel, or a PeftModel around one.
        label_map: as in FrozenTeacher.
        parameters: the ones that count, all without it; `SharedBaseTeacher.base_parameters()` leaves the adapter out.

    Raises:
        ValueError: this process holds a part of the model only.
    """
    if is_sharded(model) or any(value.is_meta for value in model.parameters()):
        raise ValueError(
            "expected a teacher whose weights are all in this process, got one in shards (FSDP, ZeRO-3) or on the "
            "meta device. Without them it cannot be told from another teacher; name it before it is sharded."
        )
    tensors = list(_tensors(model, None if parameters is None else {id(parameter) for parameter in parameters}))
    about = json.dumps(_about(model, label_map, adapter=parameters is None), sort_keys=True, default=str)
    state = (about, *((name, value.data_ptr(), value._version, _sum(value)) for name, value in tensors))
    if model in _named and _named[model][0] == state:
        return _named[model][1]
    digest = hashlib.sha256(about.encode())
    for name, value in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(_flat(value).cpu().numpy().data)
    _named[model] = state, digest.hexdigest()
    return digest.hexdigest()


def row_keys(inputs: Mapping[str, Any], names: Sequence[str]) -> list[bytes]:
    """Name each row of a batch by what the teacher reads of it, without its padding.

    Args:
        inputs: the batch as it is collated; where it has columns of the teacher's own (`teacher_input_ids`), these
            count. Labels do not.
        names: argument names of the teacher's `forward`.

    Raises:
        ValueError: nothing in the batch is the teacher's, or it cannot be said which part of it belongs to which row.
    """
    given = own_inputs(inputs) or inputs
    read = {name: given[name].detach().cpu() for name in sorted(names) if isinstance(given.get(name), Tensor)}
    read.pop("labels", None)  # no teacher is shown them
    size = _size(read, names)
    mask = read.get("attention_mask")
    real = _Real(_plain(mask) != 0) if mask is not None and mask.dim() == 2 else None
    head = _settings({name: given[name] for name in sorted(names) if name in given and name not in read})
    for name, value in read.items():
        tokens = real is not None and _of_tokens(name, value, real)
        head += f" {name} {value.dtype} {tuple(value.shape[2 if tokens else 1 :])}{' by token' if tokens else ''}"
    digests = [hashlib.sha256(head.encode()) for _ in range(size)]
    for name, value in read.items():
        content = _plain(value)
        rows = real.rows(content) if real is not None and _of_tokens(name, value, real) else content
        for digest, row in zip(digests, rows, strict=True):
            digest.update(row.tobytes())  # of columns that are cut alike, so that none can reach into the next
    return [digest.digest()[:KEY_BYTES] for digest in digests]


class _Real:
    """Where the tokens of each row stand.

    Args:
        mask: (B, N) bool.
    """

    def __init__(self, mask: npt.NDArray[np.bool_]) -> None:
        self.length = mask.shape[1]
        starts = mask.argmax(axis=1) if self.length else np.zeros(len(mask), dtype=int)
        stops = self.length - mask[:, ::-1].argmax(axis=1) if self.length else starts
        stops = np.where(mask.any(axis=1), stops, starts)
        self._spans = list(zip(starts.tolist(), stops.tolist(), strict=True))
        gaps = (mask.sum(axis=1) < stops - starts).tolist()
        self._inside = [mask[row, start:stop] if gaps[row] else None for row, (start, stop) in enumerate(self._spans)]

    def rows(self, values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
        """What stands between the first and the last token of each row, and 0 where no token is between."""
        for row, (start, stop), inside in zip(values, self._spans, self._inside, strict=True):
            part = row[start:stop]
            if inside is not None:
                part = part.copy()
                part[~inside] = 0
            yield part


def _of_tokens(name: str, value: Tensor, real: _Real) -> bool:
    """Whether the second axis is the tokens of attention_mask; elsewhere it has this length by chance."""
    if name.startswith("decoder_") or value.dim() < 2 or value.shape[1] != real.length:
        return False
    return not value.is_floating_point() or name in {"inputs_embeds", "attention_mask"}


def _settings(others: Mapping[str, object]) -> str:
    """What the teacher is given beside tensors."""
    told = {name: value for name, value in others.items() if value is not None and name != "labels"}
    if strange := [name for name, value in told.items() if not isinstance(value, bool | int | float | str)]:
        raise ValueError(
            f"expected tensors, numbers or words for what the teacher is given, got {strange[0]} of type "
            f"{type(told[strange[0]]).__name__}. It may decide what the teacher shows, and cannot be part of a row's "
            "name; let the data collator make a tensor of it, or train without teacher_cache."
        )
    return repr(sorted(told.items()))


def _size(read: Mapping[str, Tensor], names: Sequence[str]) -> int:
    sizes = {name: value.shape[0] if value.dim() else None for name, value in read.items()}
    size = next(iter(sizes.values()), None)
    if size is None or len(set(sizes.values())) > 1:
        raise ValueError(
            f"expected tensors of one number of rows among what the teacher reads ({', '.join(names[:6])}, ...), got "
            f"{sizes or 'none'}. What it shows is kept row by row; train without teacher_cache."
        )
    return size


def _tensors(model: nn.Module, counted: set[int] | None) -> Iterator[tuple[str, Tensor]]:
    """Each buffer, and each parameter of these identities, by its name in the model that PEFT wrapped."""
    chosen = [(name, own) for name, own in model.named_parameters() if counted is None or id(own) in counted]
    for name, value in (*chosen, *model.named_buffers()):
        for added in _WRAPPED:
            name = name.replace(added, "")
        yield name, value.detach()


def _about(model: nn.Module, label_map: Sequence[int] | None, adapter: bool) -> dict[str, Any]:
    """What decides, beside the weights, what a teacher shows."""
    base: Any = base_model(model)
    about = {
        "class": class_of(base).__name__,
        "config": _telling(base.config.to_dict()),
        "label_map": None if label_map is None else [int(label) for label in label_map],
    }
    wrapped: Any = model
    if base is not model and adapter:
        adapters = {name: _telling(config.to_dict()) for name, config in wrapped.peft_config.items()}
        about |= {"adapters": adapters, "active": wrapped.active_adapters}
    return about


def _telling(config: Any) -> Any:
    """The entries of a configuration by which something is computed."""
    if isinstance(config, Mapping):
        return {str(name): _telling(value) for name, value in config.items() if name not in _SAYS_NOTHING}
    if isinstance(config, set | frozenset):
        return sorted(config, key=str)  # in no order of their own
    return config


def _sum(value: Tensor) -> int:
    """Of all words of 8 bytes: `_version` misses what is changed through `.data`, as moving averages often are."""
    content = _flat(value)
    words = content.numel() // 8 * 8
    if content.storage_offset() % 8:
        content = content.clone()
    return int(content[:words].view(torch.int64).sum()) + int(content[words:].sum())


def _plain(value: Tensor) -> npt.NDArray[Any]:
    """As numpy, which has no bfloat16: what it has not is shown as bytes."""
    value = value.contiguous()
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()


def _flat(value: Tensor) -> Tensor:
    """The bytes of a tensor, where it lies."""
    return value.contiguous().reshape(-1).view(torch.uint8)
