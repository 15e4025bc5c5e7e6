"""The configuration of a student: its teacher's, with the chosen layers, another width, other patches.

Sizes that hang on each other follow. This module makes a configuration; `students` makes the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hfdistill.anatomy import size_fields
from hfdistill.keywords import is_plain

PixelSize = int | Sequence[int]
"""A size in pixels: a number for a square, or rows and columns."""

# Families that read a patch grid of any shape as it is; others take the square root of the number of patches.
_ANY_SHAPE = ("deit", "dinov3_vit", "ijepa", "vit", "vit_msn")


def student_config(
    teacher: PreTrainedModel,
    chosen: Sequence[int],
    sizes: Mapping[str, int],
    pixels: Mapping[str, PixelSize],
    overrides: Mapping[str, Any],
) -> PreTrainedConfig:
    """The teacher's configuration with the chosen layers, the new sizes and, last, the overrides.

    Args:
        teacher: the model whose configuration it is.
        chosen: the teacher layer, from 0, of each student layer.
        sizes: "width", "intermediate" and "heads" -> the size asked for.
        pixels: "image_size" and "patch_size" -> the size asked for.
        overrides: further fields to replace, by their own names.

    Raises:
        TypeError: a size in pixels is neither a number nor two.
        ValueError: a field is unknown, set twice, or of a value that does not go with the others.
    """
    fields, values = size_fields(teacher.config), teacher.config.to_dict()
    replaced = {teacher.config.attribute_map.get(name, name): value for name, value in overrides.items()}
    asked = {fields[size] for size in ("depth", *sizes) if size in fields} | pixels.keys()
    if taken := asked & replaced.keys():
        raise ValueError(f"`config` sets {sorted(taken)}, which arguments of student_from set; give each size once.")
    if unknown := sorted(replaced.keys() - values.keys()):
        raise ValueError(
            f"`config` sets {unknown}, which a {type(teacher.config).__name__} does not have; it has {sorted(values)}."
        )
    if len(chosen) != values[fields["depth"]] and "stage_names" in values:
        values = _without_outputs(values, replaced)
    values = _with_layers(values, fields, chosen)
    if sizes:
        values |= _resized(values, fields, sizes, replaced)
    if pixels:
        values |= _with_pixels(teacher, values, pixels)
    values |= replaced
    values.pop("true_hidden_size", None)  # MobileBERT works it out from the other sizes, unless it is given
    values["attn_implementation"] = teacher.config._attn_implementation
    return type(teacher.config)(**values)


def check_numbers(*numbers: object) -> None:
    """Refuse sizes and seeds that are given and no whole numbers.

    Raises:
        TypeError: with the first of them.
    """
    wrong = [number for number in numbers if number is not None and not is_plain("int", number)]
    if wrong:
        raise TypeError(
            f"student_from needs whole numbers for num_layers, the sizes and the seed, got {wrong[0]!r} "
            f"({type(wrong[0]).__name__}). Write 6, not '6' or 6.0."
        )


def patch_projection(model: PreTrainedModel) -> str:
    """The name of the convolution that makes an image model's patches into tokens, or "" where there is not just one.

    It is the one whose kernel and stride are both the configuration's `patch_size`.
    """
    size = model.config.to_dict().get("patch_size")
    patch = tuple(size) if isinstance(size, list | tuple) else (size, size)  # a video's are three: no Conv2d has these
    convolutions = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    found = [name for name, module in convolutions if module.kernel_size == module.stride == patch]
    return found[0] if len(found) == 1 else ""


def _rows_and_columns(name: str, size: PixelSize) -> tuple[int, int]:
    both = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
    if len(both) != 2 or not all(isinstance(pixels, int) for pixels in both):
        raise TypeError(f"student_from needs {name} as a number of pixels or as (rows, columns), got {size!r}.")
    return both[0], both[1]


def _with_pixels(
    teacher: PreTrainedModel, values: Mapping[str, Any], pixels: Mapping[str, PixelSize]
) -> dict[str, int | list[int]]:
    """The fields that change with another image or patch size."""
    whose, family = type(teacher).__name__, teacher.config.model_type
    if not patch_projection(teacher) or values.get("image_size") is None:
        raise ValueError(
            f"student_from cannot set {' and '.join(pixels)} of a {whose} ({family}): it needs an image model with an "
            "`image_size`, and one convolution that makes patches of `patch_size` pixels into tokens. Leave it "
            "out."
        )
    sizes = {name: _rows_and_columns(name, {**values, **pixels}[name]) for name in ("image_size", "patch_size")}
    image, patch = sizes["image_size"], sizes["patch_size"]
    for length, step in zip(image, patch, strict=True):
        _refuse_uneven_patches(length, step)
    grid = (image[0] // patch[0], image[1] // patch[1])
    if family not in _ANY_SHAPE and not (grid[0] == grid[1] and patch[0] == patch[1]):
        raise ValueError(
            f"student_from cannot give a {whose} ({family}) {grid[0]} x {grid[1]} patches of {patch[0]} x {patch[1]} "
            "pixels: the family's code takes grid and patches for square, and would put positions in the wrong "
            f"places. Only {', '.join(_ANY_SHAPE)} take any shape; give a square image_size and patch_size."
        )
    # a number where one does: families read a list of two less well
    return {name: sizes[name][0] if len({*sizes[name]}) == 1 else list(sizes[name]) for name in pixels}


def _refuse_uneven_patches(length: int, step: int) -> None:
    if min(length, step) < 1 or length % step:
        divisors = sorted((n for n in range(1, length + 1) if length % n == 0), key=lambda n: abs(n - step))[:4]
        below = length - length % max(step, 1)
        raise ValueError(
            f"an image of {length} pixels cannot be cut into patches of {step}: the pixels left over would never be "
            f"seen. Nearest patch_size that fit: {', '.join(map(str, divisors)) or 'none'}; nearest image_size for "
            f"patches of {step}: {f'{below}, ' if below > 0 else ''}{below + step}."
        )


def _without_outputs(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Drop a backbone's list of layers to give out (DINOv2, BEiT): by default it is the last, whatever its number."""
    names = ("out_features", "out_indices")
    given = values["out_features"]
    if given not in (None, values["stage_names"][-1:]) and not set(names) & overrides.keys():
        raise ValueError(
            f"the teacher gives out the states of {given} (`out_features`), which may not be among the student's "
            'layers. Say which the student gives out, for example config={"out_features": ["stage2", "stage4"]}.'
        )
    return {name: value for name, value in values.items() if name not in (*names, "stage_names")}


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
    new |= {name: width for name in ("pooler_hidden_size", "pooler_output_size") if values.get(name) == old_width}
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
