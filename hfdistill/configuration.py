"""From plain mappings, as YAML and JSON give them, to the Python objects that they name, and nothing else.

No class of the package knows that configuration files exist: this module builds exactly what a user would write. An
objective is a preset's name, `{preset: tinybert, switch: 0.8}`, or names with losses::

    task: {loss: TaskLoss, weight: 0.5}
    hidden: {loss: HiddenStateLoss, layers: uniform, weight: {schedule: linear, start: 1.0, end: 0.0}}
    mine: {loss: "my_package.losses:MyLoss"}
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hfdistill.keywords import check_keywords, nearest
from hfdistill.losses import CATALOGUE, DistillationLoss
from hfdistill.objective import Objective
from hfdistill.presets import preset
from hfdistill.schedules import schedule_from_mapping


def as_objective(objective: Objective | str | Mapping[str, Any]) -> Objective:
    """An Objective from whatever a user may pass for one.

    Raises:
        TypeError: neither an Objective, a preset's name nor a mapping.
        ValueError: unknown preset, loss or keyword, with the accepted ones.
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str):
        return preset(objective)
    if isinstance(objective, Mapping):
        return objective_from_mapping(objective)
    raise TypeError(
        f"objective must be an Objective, a preset's name or a mapping of losses, got {type(objective).__name__}. "
        "Write objective='kd', or Objective(task=TaskLoss(), kd=SoftTargetLoss())."
    )


def objective_from_mapping(mapping: Mapping[str, Any]) -> Objective:
    """An Objective from a configuration: `{preset: name, **options}` or `{name: {loss: ClassName, **keywords}}`.

    Raises:
        ValueError: unknown preset, loss or keyword, with the accepted ones, nearest first.
        TypeError: a value of the wrong type.
    """
    if "preset" in mapping:
        options = {key: value for key, value in mapping.items() if key != "preset"}
        return preset(str(mapping["preset"]), **options)
    return Objective(**{str(name): loss_from_mapping(str(name), value) for name, value in mapping.items()})


def loss_from_mapping(name: str, mapping: object) -> DistillationLoss:
    """One loss from `{loss: ClassName, **keywords}`; a class of one's own is named "package.module:Class".

    Args:
        name: the term's name, for messages.
        mapping: what stands under that name.

    Raises:
        ValueError: unknown loss or keyword, with the accepted ones, nearest first.
        TypeError: not a mapping, or a keyword of the wrong type.
    """
    if not isinstance(mapping, Mapping) or "loss" not in mapping:
        raise TypeError(
            f"objective term {name!r} must be a mapping with the key 'loss', got {mapping!r}. Write "
            f"{name}: {{loss: SoftTargetLoss, weight: 0.5}}."
        )
    keywords = {str(key): value for key, value in mapping.items() if key != "loss"}
    try:
        loss = _loss_class(str(mapping["loss"]))
        check_keywords(loss.__name__, loss, keywords)
        scheduled = {
            key: schedule_from_mapping(value) for key, value in keywords.items() if isinstance(value, Mapping)
        }
        return loss(**keywords | scheduled)
    except (TypeError, ValueError) as error:
        raise type(error)(f"objective term {name!r}: {error}") from error


def read_configuration(path: str | Path) -> dict[str, Any]:
    """A YAML or JSON file as a mapping.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read (a tab, a missing bracket), with the line; or it is not a mapping of names.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}. Give the path of a .yaml or .json file.")
    try:
        text = path.read_text(encoding="utf-8")
        is_json = path.suffix == ".json"
        content = json.loads(text, object_pairs_hook=_once) if is_json else _OnceLoader(text).get_single_data()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}. Save it as UTF-8.") from error
    except yaml.YAMLError as error:
        advice = " YAML takes spaces, not tabs, to indent." if "\\t" in str(error) else ""
        if "python/" in str(error):
            advice = " A configuration holds plain values: nothing in it is run. Write the value itself."
        raise ValueError(f"{path} is not valid YAML: {error}.{advice}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(
            f"{path} must hold names with values at its top level, got {type(content).__name__}. Write one 'name: "
            "value' per line."
        )
    return content


class _OnceLoader(yaml.SafeLoader):
    """Plain values alone, and each key once: of two equal keys YAML would silently take the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys differ."""
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is there twice", key.start_mark
                    )
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return mapping


def _loss_class(name: str) -> type[DistillationLoss]:
    if name in CATALOGUE:
        return CATALOGUE[name]
    module, separator, attribute = name.partition(":")
    if not separator:
        raise ValueError(
            f"unknown loss {name!r}. Accepted, nearest first: {', '.join(nearest(name, CATALOGUE))}; or a class of "
            "your own as 'package.module:Class'."
        )
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ValueError(
            f"{name!r} names no class of a module: write 'package.module:Class', as an import would, without a path, "
            "'.py' or a call."
        )
    try:
        found = vars(importlib.import_module(module)).get(attribute)
    except ImportError as error:
        raise ValueError(
            f"the loss {name!r} is in a module that cannot be imported: {error}. Install it, or run from the folder "
            "that holds it (PYTHONPATH)."
        ) from error
    if not (inspect.isclass(found) and issubclass(found, DistillationLoss)):
        raise ValueError(
            f"{name!r} is not a DistillationLoss. Name a class that subclasses it, as 'package.module:Class'."
        )
    return found
