"""Configuration files: they build exactly the Python objects, and say on which line or word they are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hfdistill.configuration import as_objective, loss_from_mapping, objective_from_mapping, read_configuration
from hfdistill.layer_map import LayerMap
from hfdistill.losses import (
    CATALOGUE,
    AttentionRelationLoss,
    HiddenStateLoss,
    PatienceLoss,
    SoftTargetLoss,
    TaskLoss,
)
from hfdistill.objective import Objective
from hfdistill.presets import preset, preset_names
from hfdistill.schedules import Linear, Piecewise

YAML = """
task: {loss: TaskLoss, weight: 0.5, label_smoothing: 0.1}
kd:
  loss: SoftTargetLoss
  temperature: {schedule: linear, start: 4, end: 1.0}
  reduction: elementmean
hidden:
  loss: HiddenStateLoss
  layers: [[1, 2], [-1, -1]]
  shared_projector: true
  weight: {schedule: piecewise, values: {0: 1.0, 0.5: 0}}
patience: {loss: PatienceLoss, layers: "last(final=False)", normalize: no}
relation: {loss: AttentionRelationLoss, relations: [query-key, value-value], relation_heads: 4}
"""


def in_python() -> Objective:
    """What YAML says, in Python."""
    return Objective(
        task=TaskLoss(weight=0.5, label_smoothing=0.1),
        kd=SoftTargetLoss(Linear(4, 1.0), reduction="elementmean"),
        hidden=HiddenStateLoss([(1, 2), (-1, -1)], shared_projector=True, weight=Piecewise({0.0: 1.0, 0.5: 0.0})),
        patience=PatienceLoss(LayerMap.last(final=False), normalize=False),
        relation=AttentionRelationLoss(relations=("query-key", "value-value"), relation_heads=4),
    )


def settings(objective: Objective) -> dict[str, tuple[type, dict[str, Any]]]:
    """Name -> class and everything a user can set of it."""
    return {
        name: (type(loss), {key: value for key, value in vars(loss).items() if not key.startswith("_")})
        for name, loss in objective.losses.items()
    }


def test_yaml_builds_what_python_builds(tmp_path: Path) -> None:
    """A configuration is another way to write the same objects, not another set of features."""
    path = tmp_path / "objective.yaml"
    path.write_text(YAML, encoding="utf-8")
    assert settings(objective_from_mapping(read_configuration(path))) == settings(in_python())


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_named_or_written_as_a_mapping(name: str) -> None:
    """`objective: kd` and `objective: {preset: kd}` are one objective."""
    assert settings(as_objective(name)) == settings(as_objective({"preset": name})) == settings(preset(name))


def test_a_preset_takes_its_options() -> None:
    """The options of a preset stand beside its name."""
    built = as_objective({"preset": "tinybert", "switch": 0.8, "temperature": 2})
    assert settings(built) == settings(preset("tinybert", switch=0.8, temperature=2))
    with pytest.raises(ValueError, match=r"preset 'tinybert' takes no 'swich'. Accepted, nearest first: switch"):
        as_objective({"preset": "tinybert", "swich": 0.8})


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_loss_can_be_named(name: str) -> None:
    """With its defaults, as in Python."""
    assert settings(as_objective({"x": {"loss": name}})) == settings(Objective(x=CATALOGUE[name]()))


def test_an_objective_passes_through() -> None:
    """It may have trainable parts that are not to be made anew."""
    objective = in_python()
    assert as_objective(objective) is objective


def test_a_loss_of_ones_own_is_named_by_module_and_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a registry to write to: the Python name is enough."""
    text = (
        "from hfdistill.losses import SoftTargetLoss\n"
        "class MyLoss(SoftTargetLoss):\n"
        "    def __init__(self, sharpness: float = 1.0, weight: float = 1.0) -> None:\n"
        "        super().__init__(1.0 / sharpness, weight=weight)\n"
        "class NoLoss: ...\n"
    )
    (tmp_path / "losses_of_mine.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    loss = loss_from_mapping("mine", {"loss": "losses_of_mine:MyLoss", "sharpness": 2, "weight": 0.5})
    assert isinstance(loss, SoftTargetLoss)
    assert type(loss).__name__ == "MyLoss"
    assert (loss.temperature(0.0), loss.weight(0.0)) == (0.5, 0.5)
    with pytest.raises(ValueError, match=r"term 'mine': MyLoss takes no 'sharp'. .*nearest first: sharpness"):
        loss_from_mapping("mine", {"loss": "losses_of_mine:MyLoss", "sharp": 2})
    for name in ("losses_of_mine:NoLoss", "losses_of_mine:Missing"):
        with pytest.raises(ValueError, match=rf"objective term 'mine': '{name}' is not a DistillationLoss"):
            loss_from_mapping("mine", {"loss": name})
    with pytest.raises(ValueError, match=r"cannot be imported: No module named 'losses_of_theirs'.*PYTHONPATH"):
        loss_from_mapping("mine", {"loss": "losses_of_theirs:MyLoss"})


@pytest.mark.parametrize(
    ("term", "error", "message"),
    [
        (
            {"loss": "SoftTarget"},
            ValueError,
            r"'x': unknown loss 'SoftTarget'.*first: SoftTargetLoss.*module:C",
        ),
        (
            {"loss": "TaskLoss", "wieght": 1},
            ValueError,
            r"'x': TaskLoss takes no 'wieght'.*first: weight, label",
        ),
        ({"loss": "TaskLoss", "weight": "high"}, TypeError, r"'x': A schedule needs a number as value, got 'high'"),
        (
            {"loss": "HiddenStateLoss", "shared_projector": "false"},
            TypeError,
            r"'x': .*projector as bool, got 'f",
        ),
        ({"loss": "SoftTargetLoss", "temperature": "4"}, TypeError, r"'x': .*number as value, got '4' \(str\)"),
        ({"loss": "SoftTargetLoss", "temperature": 0}, ValueError, r"'x': temperature must be above 0, got 0"),
        ({"loss": "HiddenStateLoss", "layers": "unifrm"}, ValueError, r"'x': .*unifrm.*uniform"),
        ({"loss": "HiddenStateLoss", "layers": 3}, ValueError, r"'x': A layer map is a list of pairs, got 3"),
        (
            {"loss": "AttentionRelationLoss", "relation_heads": "4"},
            TypeError,
            r"heads as int or None, got '4'",
        ),
        ({"loss": "TaskLoss", "weight": {"schedule": "liner"}}, ValueError, r"'x': There is no schedule 'liner'"),
        (
            {"weight": 1.0},
            TypeError,
            r"'x' must be a mapping with the key 'loss', got \{'weight.*Write x: \{loss:",
        ),
        (0.5, TypeError, r"objective term 'x' must be a mapping with the key 'loss', got 0.5"),
    ],
)
def test_what_is_wrong_in_a_term_is_told_with_its_name(term: object, error: type[Exception], message: str) -> None:
    """One line of a file with five losses: which one, what came, and what is accepted."""
    with pytest.raises(error, match=message):
        objective_from_mapping({"x": term})


@pytest.mark.parametrize("objective", [None, 3, ["kd"], TaskLoss()])
def test_what_is_no_objective_is_refused(objective: object) -> None:
    """A single loss has no name for the log, and a list has none either."""
    with pytest.raises(TypeError, match=r"must be an Objective, a preset's name or a mapping.*got \w+. Write"):
        as_objective(objective)  # type: ignore[arg-type]


def test_an_empty_mapping_is_an_empty_objective() -> None:
    """`objective:` with nothing under it."""
    with pytest.raises(ValueError, match="at least one loss, got none"):
        as_objective({})


def test_json_is_read_too(tmp_path: Path) -> None:
    """Trainers of other tools write JSON."""
    path = tmp_path / "run.json"
    path.write_text('{"kd": {"loss": "SoftTargetLoss"}, "seed": 3}', encoding="utf-8")
    assert read_configuration(str(path)) == {"kd": {"loss": "SoftTargetLoss"}, "seed": 3}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tab.yaml", "task:\n\tloss: TaskLoss\n", r"tab.yaml is not valid YAML: .*line 2.*spaces, not tabs"),
        ("open.yaml", "task: {loss: TaskLoss\nkd: 3\n", r"open.yaml is not valid YAML: .*line 2"),
        ("comma.json", '{"seed": 3,\n "lr": }\n', r"comma.json is not valid JSON: .*line 2"),
        (
            "list.yaml",
            "- task\n- kd\n",
            r"list.yaml must hold names with values .*, got list.*one 'name:",
        ),
        ("empty.yaml", "", r"empty.yaml must hold names with values at its top level, got NoneType"),
        ("numbers.yaml", "1: task\n", r"numbers.yaml must hold names with values"),
        ("word.json", '"kd"', r"word.json must hold names with values at its top level, got str"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(tmp_path: Path, name: str, text: str, message: str) -> None:
    """With the file, the line and what to write."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        read_configuration(tmp_path / name)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """A relative path that is read from another folder."""
    with pytest.raises(FileNotFoundError, match=r"no configuration file .*run.yaml.*path of a .yaml or .json"):
        read_configuration(tmp_path / "run.yaml")


def test_every_loss_takes_its_weight_from_a_file() -> None:
    """Weight is the one keyword that all share; a loss that forgets it cannot be weighed in YAML."""
    for name in CATALOGUE:
        term = f"{{loss: {name}, weight: {{schedule: cosine, start: 1, end: 0}}}}"
        assert loss_from_mapping("x", yaml.safe_load(term)).weight(1.0) == 0.0


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_loss_is_named_in_a_file(name: str) -> None:
    """With its defaults and a weight: what cannot be written in YAML cannot be swept."""
    objective = objective_from_mapping({"term": {"loss": name, "weight": 0.5}})
    assert type(objective["term"]) is CATALOGUE[name]
    assert objective.weights(0.0) == {"term": 0.5}


@pytest.mark.parametrize(
    "keywords",
    [
        {"loss": "KnowledgeProjectionLoss", "student_layers": [1, 2], "teacher_layers": [3, 4]},
        {"loss": "AttentionMapLoss", "progressive": 0.5},
        {"loss": "TaskOrientedLoss", "temperature": {"schedule": "linear", "start": 1, "end": 2}},
        {"loss": "AngleRelationLoss", "vertices": 8, "gather": True},
        {"loss": "AdjustedTargetLoss", "dynamic": "flsw"},
        {"loss": "UniversalLogitLoss", "top": None},
    ],
    ids=lambda keywords: str(keywords["loss"]),
)
def test_options_of_every_kind_pass(keywords: dict[str, object]) -> None:
    """Lists, schedules, switches and None, as YAML gives them."""
    assert objective_from_mapping({"term": keywords})
