"""Make a student from a teacher: fewer layers, copied from the teacher, or a narrower model of the same class.

The student is an ordinary PreTrainedModel that shares no memory with its teacher. This module copies weights and
configurations; it does not train, prune neurons, factorise matrices or cut the vocabulary.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hfdistill.anatomy import Anatomy, base_model, encoder_layers, plain_settings, size_fields
from hfdistill.layer_map import LayerMap

logger = logging.getLogger(__name__)

_DISTILBERT_LAYERS = (0, 2, 4, 7, 9, 11)
_SHARED_LAYERS = "albert"  # one layer called many times: its depth is a number in the configuration and nothing else


@dataclass(frozen=True)
class StudentNote:
    """What a student got from its teacher; `print` it to read it.

    Args:
        layers: the teacher layer, counted from 0, that each student layer comes from.
        copied: names of the student's tensors that hold the teacher's values.
        fresh: names of the student's tensors that are newly initialised.
        left_out: names of the teacher's tensors that have no place in the student (ModernBERT's first layer, for one,
            has no norm before its attention); those of layers that were not chosen are not listed.
    """

    layers: tuple[int, ...]
    copied: tuple[str, ...]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.copied)} tensors copied and {len(self.fresh)} fresh, teacher layers {list(self.layers)}"]
        lines += [f"fresh: {name}" for name in self.fresh] + [f"left out: {name}" for name in self.left_out]
        return "\n".join(lines)


# Weak, so that a note lives as long as its student; beside the student, so that nothing of it is ever saved with it.
_NOTES: WeakKeyDictionary[nn.Module, StudentNote] = WeakKeyDictionary()


def student_from(
    teacher: PreTrainedModel,
    *,
    num_layers: int | None = None,
    layers: str | LayerMap | Sequence[int] = "uniform",
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    num_attention_heads: int | None = None,
    seed: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """Make a student of the teacher's class, with as much of the teacher in it as fits.

    A module is copied whole, where the names (after renumbering the layers) and shapes of all its tensors agree, or
    not at all: a bias without its weight means nothing. So a student of the teacher's width is the teacher with fewer
    layers, head and label names included, and a narrower one is almost entirely fresh. One line of log says what was
    copied; `describe_student` has every name.

    The student is in evaluation mode, as from `from_pretrained`; device, attention implementation and dtype are the
    teacher's, so that a copy is exact (after a half-precision teacher, `student.float()` before float32 training).

    Args:
        teacher: a model with one stack of equal layers; it is not changed.
        num_layers: depth of the student, at most the teacher's; by default the teacher's, or as `layers` lists.
        layers: which teacher layers to keep. "uniform" (12 -> 4 keeps the 3rd, 6th, 9th and 12th; Jiao et al. 2020,
            TinyBERT, https://arxiv.org/abs/1909.10351, section 3), "first" (Sun et al. 2019, Patient Knowledge
            Distillation, https://arxiv.org/abs/1908.09355, section 3), "last", "distilbert" (12 -> 6 only, as the code
            of Sanh et al. 2019, https://arxiv.org/abs/1910.01108), any LayerMap that gives each student layer one
            teacher layer, or the teacher layers themselves, counted from 0, negative from the end.
        hidden_size: width of the student.
        intermediate_size: width inside the MLP; by default scaled with `hidden_size`.
        num_attention_heads: number of heads, a divisor of the width; by default the teacher's. A module that splits
            the width into other heads is fresh even where shapes agree: each head would get parts of several.
        seed: of the fresh parts; torch's global generator is then left as it was. By default it draws them.
        config: further fields of the configuration to replace, by their own names. Layers that would behave unlike
            the ones they come from are then copied all the same.

    Raises:
        TypeError: `teacher` is not a PreTrainedModel (merge a PeftModel first), or `layers` is of a wrong type.
        ValueError: the family has no single stack of equal layers, the depth or the sizes do not fit, or a chosen
            layer would behave differently in its new place (another kind of attention, a scale that grows with depth).
    """
    anatomy = _checked(teacher)
    chosen = _chosen_layers(layers, num_layers, anatomy.depth)
    if chosen != tuple(range(anatomy.depth)) and anatomy.family != _SHARED_LAYERS:
        encoder_layers(teacher)  # raises where there is no list of equal layers to choose from
    asked = {"width": hidden_size, "intermediate": intermediate_size, "heads": num_attention_heads}
    sizes = {size: value for size, value in asked.items() if value is not None}
    student_config = _student_config(teacher, chosen, sizes, config or {})
    # Inside a CPU context, so that one generator, which is given back, decides every fresh value.
    with torch.random.fork_rng(devices=[], enabled=seed is not None), torch.device("cpu"):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        student: PreTrainedModel = type(teacher)(student_config)
    if teacher.can_generate():
        student.generation_config = copy.deepcopy(teacher.generation_config)
    twins = _twins(student, teacher, chosen)
    differences = _differences(student, teacher, twins)
    if differences and not sizes and not config:
        raise ValueError(
            f"a copied layer would behave differently in the student: {next(iter(differences.values()))}. Choose "
            "layers whose kind fits their new place, or say in `config` how the student's layers should be."
        )
    _NOTES[student] = note = StudentNote(chosen, *_copy(student, teacher, twins, tuple(differences) if sizes else ()))
    told = str(note).splitlines() + ([] if sizes else list(differences.values()))
    more = f"; and {len(told) - 4} more, print(describe_student(student)) names all" if len(told) > 4 else ""
    logger.log(logging.WARNING if len(told) > 1 else logging.INFO, "student_from: %s%s", "; ".join(told[:4]), more)
    student.eval()  # type: ignore[no-untyped-call]
    return student


def describe_student(student: nn.Module) -> StudentNote:
    """What `student_from` copied into this student from its teacher, and what it did not.

    Raises:
        ValueError: `student` was not made by `student_from` in this process.
    """
    if student not in _NOTES:
        raise ValueError(
            f"describe_student needs the very model that student_from returned, got another {type(student).__name__}: "
            "where its weights come from is not saved with it."
        )
    return _NOTES[student]


def _checked(teacher: Any) -> Anatomy:
    if isinstance(teacher, nn.Module) and base_model(teacher) is not teacher:
        raise TypeError(
            f"student_from needs a plain teacher, got a {type(teacher).__name__}: the adapter's weights would be "
            "lost. Pass teacher.merge_and_unload()."
        )
    if not isinstance(teacher, PreTrainedModel):
        raise TypeError(f"student_from needs a transformers PreTrainedModel as teacher, got {type(teacher).__name__}.")
    anatomy, held = Anatomy.of(teacher), teacher.config.to_dict()
    objections = {
        "it has several stacks, and one list of layers cannot say which of them to cut": anatomy.encoder_decoder
        or teacher.config.get_text_config() is not teacher.config,
        "its layers come in stages of different widths (`depths`)": "depths" in held,
        "which group of shared layers a layer belongs to depends on the depth": held.get("num_hidden_groups", 1) > 1,
        "its configuration has no number of layers": "depth" not in size_fields(teacher.config),
        "its weights are quantised; load it unquantised": held.get("quantization_config") is not None,
        "weights are on the meta device; load all of it": any(weight.is_meta for weight in teacher.parameters()),
    }
    for reason, holds in objections.items():
        if holds:
            raise ValueError(
                f"student_from cannot cut {type(teacher).__name__} ({anatomy.family}): {reason}. Otherwise build the "
                "student by hand from a smaller configuration."
            )
    return anatomy


def _chosen_layers(layers: str | LayerMap | Sequence[int], num_layers: int | None, depth: int) -> tuple[int, ...]:
    """The teacher layer, from 0, of each student layer."""
    if num_layers is not None and not 1 <= num_layers <= depth:
        raise ValueError(
            f"student_from needs num_layers between 1 and the teacher's {depth}, got {num_layers}: each student layer "
            "starts from a teacher layer of its own."
        )
    if layers == "distilbert":
        if (depth, num_layers or 6) == (12, 6):
            return _DISTILBERT_LAYERS
        raise ValueError(
            f'layers="distilbert" is the list {list(_DISTILBERT_LAYERS)}, defined only for 12 -> 6 layers, got '
            f'{depth} -> {num_layers or 6}. Use layers="uniform", or list the layers.'
        )
    if isinstance(layers, str | LayerMap):
        return _mapped_layers(LayerMap.parse(layers), num_layers or depth, depth)
    if not isinstance(layers, Sequence) or not all(isinstance(layer, int) for layer in layers):
        raise TypeError(
            "student_from needs a rule or a list of teacher layer numbers counted from 0 as `layers`, got "
            f'{layers!r}. Write "uniform", or for example [0, 3, 6, 9].'
        )
    numbers = [int(layer) for layer in layers]
    if num_layers not in (None, len(numbers)) or not 0 < len(numbers) <= depth:
        raise ValueError(
            f"`layers` lists {len(numbers)} teacher layers; expected {num_layers or f'1 to {depth}'}, one for each "
            "student layer. Leave num_layers out to take as many as are listed."
        )
    if outside := [layer for layer in numbers if not -depth <= layer < depth]:
        raise ValueError(f"`layers` names {outside}, but the teacher has layers 0 to {depth - 1} (or -{depth} to -1).")
    return tuple(layer % depth for layer in numbers)


def _mapped_layers(rule: LayerMap, student_depth: int, depth: int) -> tuple[int, ...]:
    pairs = sorted(rule.without_embeddings().resolve(student_depth, depth))
    if [student for student, _ in pairs] != list(range(1, student_depth + 1)):
        raise ValueError(
            f"the layer map '{rule}' does not give each of the {student_depth} student layers one teacher layer to "
            f"start from: {pairs}. Use 'uniform', 'first' or 'last', or list the teacher layers from 0."
        )
    return tuple(layer - 1 for _, layer in pairs)


def _student_config(
    teacher: PreTrainedModel, chosen: Sequence[int], sizes: Mapping[str, int], overrides: Mapping[str, Any]
) -> PreTrainedConfig:
    """The teacher's configuration with the chosen layers, the new sizes and, last, the overrides."""
    fields, values = size_fields(teacher.config), teacher.config.to_dict()
    replaced = {teacher.config.attribute_map.get(name, name): value for name, value in overrides.items()}
    if taken := {fields[size] for size in ("depth", *sizes) if size in fields} & replaced.keys():
        raise ValueError(f"`config` sets {sorted(taken)}, which arguments of student_from set; give each size once.")
    if unknown := sorted(replaced.keys() - values.keys()):
        raise ValueError(
            f"`config` sets {unknown}, which a {type(teacher.config).__name__} does not have; it has {sorted(values)}."
        )
    values = _with_layers(values, fields, chosen)
    if sizes:
        values |= _resized(values, fields, sizes, replaced)
    values |= replaced
    values.pop("true_hidden_size", None)  # MobileBERT works it out from the other sizes, unless it is given
    values["attn_implementation"] = teacher.config._attn_implementation
    return type(teacher.config)(**values)


def _with_layers(values: Mapping[str, Any], fields: Mapping[str, str], chosen: Sequence[int]) -> dict[str, Any]:
    """Cut every list with one entry per layer (layer_types and its kin), so that the chosen layers keep theirs."""
    depth, known = values[fields["depth"]], {"attention_window", *fields.values()}
    cut = {
        name: [value[layer] for layer in chosen]
        for name, value in values.items()
        if isinstance(value, list) and len(value) == depth
        # By name as well as by length: DeBERTa's pos_att_type may be as long as a small model is deep.
        if "layer" in name or name.endswith("_types") or name in known
    }
    return {**values, **cut, fields["depth"]: len(chosen)}


def _resized(
    values: Mapping[str, Any], fields: Mapping[str, str], sizes: Mapping[str, int], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields that change with the sizes asked for; sizes that they imply follow, unless they are overridden."""
    for size, value in sizes.items():
        if size not in fields or not isinstance(values[fields[size]], int | None) or value < 1:
            raise ValueError(
                f"student_from cannot set the {size} to {value}: it must be at least 1, and one number in the "
                f"family's configuration, which has {values.get(fields.get(size, ''))}."
            )
    new = {fields[size]: value for size, value in sizes.items()}
    old_width, old_heads = (values.get(fields.get(size, ""), 0) for size in ("width", "heads"))
    width, heads = sizes.get("width", old_width), sizes.get("heads", old_heads)
    inner = fields.get("intermediate", "")
    if inner not in new and isinstance(values.get(inner), int):
        new[inner] = max(1, round(values[inner] * width / old_width))
    if values.get("pooler_hidden_size") == old_width:
        new["pooler_hidden_size"] = width
    if (groups := values.get("num_key_value_heads")) is not None:
        groups = overrides.get("num_key_value_heads", heads if groups == old_heads else groups)
        new["num_key_value_heads"] = groups
        if heads % groups:
            raise ValueError(
                f"{heads} attention heads cannot share {groups} key-value heads evenly. Give another "
                'num_attention_heads, or config={"num_key_value_heads": ...} a divisor of it.'
            )
    head_width = values.get("head_dim")
    if head_width is not None and head_width * old_heads != old_width:
        return new  # attention has a width of its own (Qwen3, Gemma), whatever the number of heads
    split = values["intra_bottleneck_size"] if values.get("use_bottleneck") else width  # the former in MobileBERT
    _refuse_uneven_heads(split, heads, "rope_parameters" in values)
    return new if head_width is None else {**new, "head_dim": width // heads}


def _refuse_uneven_heads(width: int, heads: int, rotary: bool) -> None:
    even = 2 if rotary else 1  # rotary positions turn pairs of features
    if width % (even * heads or 1):
        counts = sorted((n for n in range(1, width + 1) if width % (even * n) == 0), key=lambda n: abs(n - heads))[:4]
        below = width - width % (even * heads)
        raise ValueError(
            f"a width of {width} cannot be split over {heads} attention heads, each of the same{' even' * rotary} "
            f"width. Nearest num_attention_heads that fit: {', '.join(map(str, counts)) or 'none'}; nearest "
            f"hidden_size for {heads} heads: {f'{below}, ' if below else ''}{below + even * heads}."
        )


def _twins(student: PreTrainedModel, teacher: PreTrainedModel, chosen: Sequence[int]) -> dict[str, str]:
    """The name of each student module -> the name that the module it comes from has in the teacher."""
    anatomy = Anatomy.of(teacher)
    ours, theirs = (
        {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth}
        for model, depth in ((student, len(chosen)), (teacher, anatomy.depth))
    )
    per_layer = set() if anatomy.family == _SHARED_LAYERS else ours & theirs
    twins: dict[str, str] = {}
    for name, _ in student.named_modules():
        outermost = min((path for path in per_layer if name.startswith(f"{path}.")), key=len, default="")
        position, dot, rest = name[len(outermost) + 1 :].partition(".")
        twins[name] = f"{outermost}.{chosen[int(position)]}{dot}{rest}" if outermost else name
    return twins


def _differences(student: PreTrainedModel, teacher: PreTrainedModel, twins: Mapping[str, str]) -> dict[str, str]:
    """The student's modules inside layers that would not do what the module they come from does -> the difference."""
    found: dict[str, str] = {}
    theirs = dict(teacher.named_modules())
    inside = [name for name in twins if any(part.isdigit() for part in name.split("."))]
    for name, module, twin in ((name, student.get_submodule(name), theirs.get(twins[name])) for name in inside):
        if twin is None or nn.Identity in (type(module), type(twin)):
            continue  # ModernBERT has an Identity where later layers have a norm: the note tells of it
        now, before = plain_settings(module), plain_settings(twin)
        if type(module) is not type(twin):
            found[name] = f"{twins[name]} is a {type(twin).__name__}, {name} would be a {type(module).__name__}"
        elif key := next((key for key in before if now.get(key) != before[key]), ""):
            found[name] = f"{key} is {before[key]!r} in {twins[name]} and would be {now.get(key)!r} in {name}"
    return found


def _copy(
    student: PreTrainedModel, teacher: PreTrainedModel, twins: Mapping[str, str], refused: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Copy every module that fits and is not refused; the names copied, fresh, and left out on the teacher's side."""
    nn.Module.to(student, teacher.device)
    source, held = teacher.state_dict(), student.state_dict()
    module_of = {name: name.rpartition(".")[0] for name in (*source, *held)}
    origin = {name: twins[module_of[name]] + name[len(module_of[name]) :] for name in held}
    # Tied weights are one parameter under several names; named_parameters gives it once.
    tensors: dict[str, torch.Tensor] = {**dict(student.named_parameters()), **dict(student.named_buffers())}
    tensors = {name: tensor for name, tensor in tensors.items() if name in held}
    misfits = {
        module_of[name]
        for name, tensor in tensors.items()
        if origin[name] not in source
        or source[origin[name]].shape != tensor.shape
        or any(name.startswith(f"{module}.") for module in refused)
    }
    for name, tensor in tensors.items():
        if module_of[name] not in misfits:
            tensor.data = source[origin[name]].detach().clone()
        elif tensor.is_floating_point():
            tensor.data = tensor.data.to(teacher.dtype)
    left_out, chosen = sorted(source.keys() - set(origin.values())), set(twins.values())
    return (
        tuple(name for name in tensors if module_of[name] not in misfits),
        tuple(name for name in tensors if module_of[name] in misfits),
        tuple(name for name in left_out if module_of[name] in chosen),
    )
