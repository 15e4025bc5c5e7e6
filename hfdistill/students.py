"""Make a student from a teacher: fewer layers, copied from the teacher, or a narrower model of the same class.

Image models can besides be given other patches, another image size and a distillation token.

The student is an ordinary PreTrainedModel that shares no memory with its teacher. This module copies weights and
configurations; it does not train, prune neurons, factorise matrices or cut the vocabulary.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from hfdistill.anatomy import Anatomy, base_model, encoder_layers, plain_settings, size_fields
from hfdistill.distillation_token import with_distillation_token
from hfdistill.layer_map import LayerMap
from hfdistill.patches import resized_bias_table, resized_patch_kernel, resized_positions
from hfdistill.student_sizes import PixelSize, check_numbers, patch_projection, student_config

logger = logging.getLogger(__name__)

_DISTILBERT_LAYERS = (0, 2, 4, 7, 9, 11)
_OF_IMAGES = {"image_size", "patch_size"}  # BEiT's layers hold them; they are never a layer's own
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
        resized: names of the student's tensors that hold the teacher's values, interpolated for other patches.
        doubled: names of those copied that the teacher has once and the student twice: a distillation token, its
            position and its head start as the class token's.
    """

    layers: tuple[int, ...]
    copied: tuple[str, ...]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]
    resized: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.copied)} tensors copied and {len(self.fresh)} fresh, teacher layers {list(self.layers)}"]
        told = {"fresh": self.fresh, "left out": self.left_out, "resized": self.resized, "doubled": self.doubled}
        return "\n".join(lines + [f"{what}: {name}" for what, names in told.items() for name in names])


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
    image_size: PixelSize | None = None,
    patch_size: PixelSize | None = None,
    distillation_token: bool = False,
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
        image_size: of the images that the student takes, in pixels, as a number or (rows, columns). Position
            embeddings are interpolated (`resized_positions`). The image processor has a size of its own: set it, too.
        patch_size: of the student's patches, in pixels, as a number or (rows, columns); larger ones are fewer tokens.
            The projection is resized (`resized_patch_kernel`) and position embeddings are interpolated.
        distillation_token: make a DeiTForImageClassificationWithTeacher of a ViT or DeiT, with every layer kept and
            the second head starting as the first (`with_distillation_token`).
        seed: of the fresh parts; torch's global generator is then left as it was. By default it draws them.
        config: further fields of the configuration to replace, by their own names. Layers that would behave unlike
            the ones they come from are then copied all the same.

    Raises:
        TypeError: `teacher` is not a PreTrainedModel (merge a PeftModel first), or `layers` or a size in pixels is of
            a wrong type.
        ValueError: the family has no single stack of equal layers, the depth or the sizes do not fit, or a chosen
            layer would behave differently in its new place (another kind of attention, a scale that grows with depth).
    """
    anatomy = _checked(teacher)
    check_numbers(num_layers, hidden_size, intermediate_size, num_attention_heads, seed)
    teacher, doubled = with_distillation_token(teacher) if distillation_token else (teacher, ())
    chosen = _chosen_layers(layers, num_layers, anatomy.depth)
    if chosen != tuple(range(anatomy.depth)) and anatomy.family != _SHARED_LAYERS:
        encoder_layers(teacher)  # raises where there is no list of equal layers to choose from
    sizes = _given({"width": hidden_size, "intermediate": intermediate_size, "heads": num_attention_heads})
    pixels = _given({"image_size": image_size, "patch_size": patch_size})
    student = _built(teacher, student_config(teacher, chosen, sizes, pixels, config or {}), seed)
    twins, remade = _twins(student, teacher, chosen), _for_new_patches(student, teacher)
    differences = _differences(student, teacher, twins, remade)
    if differences and not sizes and not config:
        raise ValueError(
            f"a copied layer would behave differently in the student: {next(iter(differences.values()))}. Choose "
            "layers whose kind fits their new place, or say in `config` how the student's layers should be."
        )
    note = _copy(student, teacher, twins, remade, tuple(differences) if sizes else ())
    note = replace(note, layers=chosen, doubled=tuple(name for name in doubled if name in note.copied))
    _NOTES[student] = note
    _tell(note, () if sizes else tuple(differences.values()))
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


def _given(sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: size for name, size in sizes.items() if size is not None}


def _built(teacher: PreTrainedModel, config: PreTrainedConfig, seed: int | None) -> PreTrainedModel:
    """A fresh model of the teacher's class."""
    # Inside a CPU context, so that one generator, which is given back, decides every fresh value.
    with torch.random.fork_rng(devices=[], enabled=seed is not None), torch.device("cpu"):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        student: PreTrainedModel = type(teacher)(config)
    if teacher.can_generate():
        student.generation_config = copy.deepcopy(teacher.generation_config)
    return student


def _tell(note: StudentNote, differences: Sequence[str]) -> None:
    told = [*str(note).splitlines(), *differences]
    more = f"; and {len(told) - 4} more, print(describe_student(student)) names all" if len(told) > 4 else ""
    level = logging.WARNING if note.fresh or note.left_out or differences else logging.INFO
    logger.log(level, "student_from: %s%s", "; ".join(told[:4]), more)


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
                "student by hand, from a smaller configuration of the family or of another one that sees the same "
                "inputs, and pass it to DistillationTrainer as model."
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


def _for_new_patches(student: PreTrainedModel, teacher: PreTrainedModel) -> dict[str, Tensor]:
    """The teacher's tensors that hang on its patches, under its names, as they are for the student's patches."""
    projection, grid, new_grid = patch_projection(teacher), Anatomy.of(teacher).grid, Anatomy.of(student).grid
    if not projection or grid is None or new_grid is None:
        return {}
    source, held, kernel, remade = teacher.state_dict(), student.state_dict(), f"{projection}.weight", {}
    rows, columns = held[kernel].shape[2:]
    if source[kernel].shape[2:] != (rows, columns):
        remade[kernel] = resized_patch_kernel(source[kernel], (rows, columns))
    patches, new_patches = grid[0] * grid[1], new_grid[0] * new_grid[1]
    for name, tensor in source.items() if grid != new_grid else ():
        if name.endswith(".relative_position_bias_table"):
            remade[name] = resized_bias_table(tensor, grid, new_grid)
        elif "position_embedding" in name and tensor.shape[-2] - patches == held[name].shape[-2] - new_patches >= 0:
            remade[name] = resized_positions(tensor, grid, new_grid)
    return remade


def _differences(
    student: PreTrainedModel, teacher: PreTrainedModel, twins: Mapping[str, str], remade: Iterable[str]
) -> dict[str, str]:
    """The student's modules inside layers that would not do what the module they come from does -> the difference."""
    found: dict[str, str] = {}
    theirs = dict(teacher.named_modules())
    known = {name.rpartition(".")[0] for name in remade}  # another size of table is what was asked for
    inside = [name for name in twins if any(part.isdigit() for part in name.split(".")) and twins[name] not in known]
    for name, module, twin in ((name, student.get_submodule(name), theirs.get(twins[name])) for name in inside):
        if twin is None or nn.Identity in (type(module), type(twin)):
            continue  # ModernBERT has an Identity where later layers have a norm: the note tells of it
        now, before = plain_settings(module), plain_settings(twin)
        other = (key for key in before if key not in _OF_IMAGES and now.get(key) != before[key])
        if type(module) is not type(twin):
            found[name] = f"{twins[name]} is a {type(twin).__name__}, {name} would be a {type(module).__name__}"
        elif key := next(other, ""):
            found[name] = f"{key} is {before[key]!r} in {twins[name]} and would be {now.get(key)!r} in {name}"
    return found


def _copy(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    twins: Mapping[str, str],
    remade: Mapping[str, Tensor],
    refused: Sequence[str],
) -> StudentNote:
    """Copy every module that fits and is not refused, with what was remade in place of the teacher's own tensors."""
    nn.Module.to(student, teacher.device)
    source, held = {**teacher.state_dict(), **remade}, student.state_dict()
    module_of = {name: name.rpartition(".")[0] for name in (*source, *held)}
    origin = {name: twins[module_of[name]] + name[len(module_of[name]) :] for name in held}
    # Tied weights are one parameter under several names; named_parameters gives it once.
    tensors: dict[str, Tensor] = {**dict(student.named_parameters()), **dict(student.named_buffers())}
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
    fits = [name for name in tensors if module_of[name] not in misfits]
    left_out, chosen = sorted(source.keys() - set(origin.values())), set(twins.values())
    return StudentNote(
        layers=(),
        copied=tuple(name for name in fits if origin[name] not in remade),
        fresh=tuple(name for name in tensors if module_of[name] in misfits),
        left_out=tuple(name for name in left_out if module_of[name] in chosen),
        resized=tuple(name for name in fits if origin[name] in remade),
    )
