"""Recipes from flags and files: the same objects, whichever way they are written."""

import json
from pathlib import Path

import pytest

from hfdistill.recipe_arguments import parse_recipe

REPOSITORY = Path(__file__).resolve().parents[1]
FLAGS = ["--task", "sst2", "--teacher", "t", "--student_layers", "3", "--learning_rate", "1e-4", "--use_cpu", "--arms"]


def test_flags_give_recipe_and_arguments():
    """The command line is the first thing a user tries."""
    recipe, args = parse_recipe([*FLAGS, "control", "pkd", "--seeds", "0", "1"])
    assert (recipe.task, recipe.teacher, recipe.student_layers) == ("sst2", "t", 3)
    assert (recipe.arms, recipe.seeds, args.learning_rate) == (["control", "pkd"], [0, 1], 1e-4)


def test_rows_are_grouped_by_length_unless_said_otherwise():
    """Padding to the longest row of the data set costs several times the compute of grouped batches."""
    assert parse_recipe([*FLAGS, "kd"])[1].train_sampling_strategy == "group_by_length"
    other = parse_recipe([*FLAGS, "kd", "--train_sampling_strategy", "random"])[1]
    assert other.train_sampling_strategy == "random"


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_gives_what_flags_give_and_flags_win(suffix: str, tmp_path: Path):
    """A published setting is a file; one figure of it can be tried by a flag."""
    content = {"task": "sst2", "teacher": "t", "student_layers": 3, "arms": ["control", "kd"], "learning_rate": "1e-4"}
    path = tmp_path / f"recipe.{suffix}"
    path.write_text(json.dumps({**content, "use_cpu": True}))  # JSON is YAML, too
    recipe, args = parse_recipe([str(path), "--student_layers", "2"])
    assert (recipe.student_layers, recipe.arms) == (2, ["control", "kd"])
    assert args.learning_rate == 1e-4  # YAML reads 1e-4 as text


def test_objectives_of_a_file_are_kept(tmp_path: Path):
    """Arms of one's own are written as mappings, which no flag can say."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "task: sst2\nteacher: t\nstudent_layers: 3\nuse_cpu: true\narms: [mine]\nobjectives:\n"
        "  mine: {kd: {loss: SoftTargetLoss, temperature: 2.0}}\n"
    )
    recipe, _ = parse_recipe([str(path)])
    assert recipe.objectives == {"mine": {"kd": {"loss": "SoftTargetLoss", "temperature": 2.0}}}


CONFIGS = sorted((REPOSITORY / "recipes" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_published_setting_can_be_read(path: Path):
    """A file with a key that has been renamed since must not lie in the repository."""
    recipe, args = parse_recipe([str(path), "--use_cpu"])
    assert recipe.arms[0] == "control"
    assert args.num_train_epochs > 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("num_train_epochs: many", "num_train_epochs must be float"),
        ("seeds: [a]", "seeds must be list"),
        ("use_cpu: 3", "use_cpu must be bool"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(line: str, said: str, tmp_path: Path):
    """Argparse would take the text as it is and fail somewhere later."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"task: sst2\nteacher: t\nstudent_layers: 3\n{line}\n")
    with pytest.raises(TypeError, match=said):
        parse_recipe([str(path)])
