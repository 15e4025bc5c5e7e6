"""From a command line or a configuration file to a recipe and its training arguments, and to what comes of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser
from transformers.trainer_pt_utils import AcceleratorConfig

from hfdistill.arguments import DistillationTrainingArguments
from hfdistill.classification import Classification, distil_classifier
from hfdistill.compatibility import check_arguments
from hfdistill.configuration import read_configuration
from hfdistill.experiment import Comparison, Experiment
from hfdistill.image_classification import ImageClassification, image_experiment
from hfdistill.keywords import check_keywords, is_plain, nearest
from hfdistill.names import shown
from hfdistill.text_classification import TextClassification, text_experiment

TEXT, IMAGE = TextClassification.task_tag, ImageClassification.task_tag
RECIPES: dict[str, type[Classification]] = {TEXT: TextClassification, IMAGE: ImageClassification}
"""What `recipe` may name -> what describes it."""

_ALWAYS: dict[str, Any] = {
    "output_dir": "outputs",
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 0.02,  # of the run, whatever its length: 50 points of each curve
}
DEFAULTS: dict[str, dict[str, Any]] = {
    TEXT: {
        **_ALWAYS,
        "train_sampling_strategy": "group_by_length",
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
    },
    IMAGE: {
        **_ALWAYS,
        "remove_unused_columns": False,
        "per_device_train_batch_size": 64,
        "per_device_eval_batch_size": 128,
    },
}
"""Where a recipe differs from TrainingArguments; grouping by length is worth a factor of 3 to 9 on SST-2."""

_FILES = (".yaml", ".yml", ".json")
_PLAIN = (bool, int, float, str)
_CONFIGURED = ("accelerator_config", "deepspeed", "fsdp_config")


def run_recipe(words: Sequence[str] | None = None, recipe: str = TEXT) -> Comparison:
    """Run the recipe that a command line or a file describes.

    Args:
        words: the command line without the program's name; None: this process's own.
        recipe: "text-classification" or "image-classification", where neither words nor file say which.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `parse_recipe`; data, teacher and student do not fit together.
        TypeError: as `parse_recipe`.
    """
    return distil_classifier(*prepared_recipe(words, recipe))


def prepared_recipe(words: Sequence[str] | None = None, recipe: str = TEXT) -> tuple[Classification, Experiment]:
    """The recipe that a command line or a file describes, and its experiment with data and teacher, nothing run yet.

    A teacher that is to be fine-tuned first (`teacher_body`) is, or is found where an earlier run left it.

    Args:
        words: see run_recipe.
        recipe: see run_recipe.

    Raises:
        FileNotFoundError: see run_recipe.
        ValueError: see run_recipe.
        TypeError: see run_recipe.
    """
    described, args = parse_recipe(words, recipe)
    check_arguments(args)  # before data and teacher are loaded, which may take hours
    if isinstance(described, ImageClassification):
        return described, image_experiment(described, args)
    return described, text_experiment(described, args)


def parse_recipe(
    words: Sequence[str] | None = None, recipe: str = TEXT
) -> tuple[TextClassification | ImageClassification, DistillationTrainingArguments]:
    """A recipe from flags, or from one YAML or JSON file that may be followed by flags, which win.

    Args:
        words: the command line without the program's name; None: this process's own.
        recipe: "text-classification" or "image-classification"; the key or flag `recipe` wins.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that cannot be read, an unknown key or flag (accepted ones nearest first), no data or
            teacher.
        TypeError: a value of the wrong type in the file.
        SystemExit: a flag's value of the wrong type, or --help.
    """
    words = list(sys.argv[1:] if words is None else words)
    content: dict[str, Any] = {}
    path = words.pop(0) if words and not words[0].startswith("-") else ""
    if path and not path.endswith(_FILES):
        raise ValueError(
            f"{shown(path)} is neither a flag (--name) nor a configuration file ({', '.join(_FILES)}). Give the file "
            "first, and flags after it."
        )
    if path:
        content = dict(read_configuration(path))
    recipe = _named(words) or content.pop("recipe", recipe)
    if recipe not in RECIPES:
        raise ValueError(f"recipe must be {' or '.join(RECIPES)}, got {recipe!r}. It says what the rows are.")
    content.pop("recipe", None)
    kind = RECIPES[recipe]
    parser = HfArgumentParser((kind, DistillationTrainingArguments))  # type: ignore[arg-type]
    parser.add_argument("--recipe", choices=list(RECIPES), default=recipe, help="What the rows are.")
    parser.set_defaults(**{**DEFAULTS[recipe], **_typed(content, path, kind)})
    unknown = parser.parse_known_args(words)[1]
    if unknown and not unknown[0].startswith("--"):
        raise ValueError(f"{shown(unknown[0])} belongs to no flag of {recipe}, and would be lost. Write --flag value.")
    if unknown:
        close = ", ".join(nearest(unknown[0].lstrip("-"), _accepted(kind))[:6])
        raise ValueError(f"{recipe} has no flag {unknown[0]!r}. Nearest of those it has: {close}.")
    described, args, _ = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    return described, args


def _named(words: Sequence[str]) -> str | None:
    """The recipe that the flags name: it decides which other flags there are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe")
    named: str | None = parser.parse_known_args(list(words))[0].recipe
    return named


def _typed(content: Mapping[str, Any], path: str, kind: type[Classification]) -> dict[str, Any]:
    """The file's values, each of the type that its key takes."""
    hints = {**get_type_hints(kind), **get_type_hints(DistillationTrainingArguments)}
    accepted = _accepted(kind)
    for key in content:
        if key not in accepted:
            close = ", ".join(nearest(key, accepted)[:6])
            raise ValueError(
                f"{path} has an unknown key {key!r}. Nearest of the accepted ones: {close}. They are the fields of "
                f"{kind.__name__} and of DistillationTrainingArguments."
            )
    for key, value in content.items():
        _check_named(key, value, path)
    return {key: _value(key, value, hints[key], path) for key, value in content.items()}


def _check_named(key: str, value: Any, path: str) -> None:
    """Refuse a token, which a file would tell to whoever reads it, and files and options that are not there."""
    if key == "hub_token" and value:
        raise ValueError(
            f"{path} holds {key}: a configuration is passed on and published, and the token with it. Take it out (and "
            "revoke it if others could read it); run `hf auth login`, or set HF_TOKEN."
        )
    if key in _CONFIGURED and isinstance(value, str) and value.endswith(".json") and not Path(value).is_file():
        raise FileNotFoundError(
            f"{path}: {key} names {value}, and there is no such file in {Path.cwd()}. Paths in a configuration are "
            "read from the folder in which you start, not from the file's own."
        )
    if key == "accelerator_config" and isinstance(value, Mapping):
        check_keywords(key, AcceleratorConfig, {str(name): entry for name, entry in value.items()})


def _accepted(kind: type[Classification]) -> list[str]:
    names = [field.name for part in (kind, DistillationTrainingArguments) for field in fields(part)]
    return ["recipe", *(name for name in names if not name.startswith("_"))]


def _value(key: str, value: Any, hint: Any, path: str) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if any(kind not in (*_PLAIN, NoneType) and get_origin(kind) is not list for kind in kinds):
        return value  # an enumeration or a structure: TrainingArguments reads these itself
    for kind in kinds:
        if _is_a(value, kind):
            return value
    if float in kinds:  # YAML reads 1e-4 (without a point) as text
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    wanted = " or ".join(str(kind).removeprefix("<class '").removesuffix("'>") for kind in kinds)
    raise TypeError(
        f"{path}: {key} must be {wanted}, got {value!r} ({type(value).__name__}). It would be misread later; correct "
        "the value, and mind that YAML wants lists as [a, b]."
    )


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        return isinstance(value, list) and all(_is_a(entry, item) for entry in value)
    return is_plain("None" if kind is NoneType else kind.__name__, value)
