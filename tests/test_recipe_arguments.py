"""Recipes from flags and files: the same objects, whichever way they are written."""

import json
from pathlib import Path

import pytest

from hfdistill import ImageClassification, TextClassification, recipe_arguments
from hfdistill.recipe_arguments import parse_recipe, run_recipe

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


IMAGES = ["--dataset", "d", "--teacher", "t", "--student_layers", "3", "--use_cpu", "--augmentation", "crop_flip"]


def test_the_recipe_is_named_by_script_flag_or_file(tmp_path: Path):
    """Rows of text and images are described in other words; the nearer place wins: flag, file, script."""
    image = tmp_path / "image.yaml"
    image.write_text("recipe: image-classification\ndataset: d\nteacher: t\nstudent_layers: 3\nuse_cpu: true\n")
    by_script, args = parse_recipe(IMAGES, "image-classification")
    by_flag, _ = parse_recipe(["--recipe", "image-classification", *IMAGES])
    by_file, _ = parse_recipe([str(image)])
    assert isinstance(by_flag, ImageClassification)
    assert by_script == by_flag
    assert by_flag.augmentation == "crop_flip"
    assert isinstance(by_file, ImageClassification)
    assert args.remove_unused_columns is False
    assert args.train_sampling_strategy == "random"
    over_file, _ = parse_recipe(
        [str(image), "--recipe=text-classification", "--text_columns", "a", "--arms", "kd"], "image-classification"
    )
    assert isinstance(over_file, TextClassification)


def test_a_recipe_of_another_kind_is_told(tmp_path: Path):
    """A flag of the one recipe does nothing in the other, and a misspelt kind is none."""
    path = tmp_path / "recipe.yaml"
    path.write_text("recipe: images\ndataset: d\n")
    with pytest.raises(ValueError, match="recipe must be text-classification or image-classification, got 'images'"):
        parse_recipe([str(path)])
    path.write_text("task: sst2\nteacher: t\nstudent_layers: 3\naugmentation: flip\n")
    with pytest.raises(ValueError, match=r"unknown key 'augmentation'.*fields of TextClassification"):
        parse_recipe([str(path)])
    with pytest.raises(ValueError, match="text-classification has no flag '--augmentation'"):
        parse_recipe([*FLAGS, "kd", "--augmentation", "flip"])


def test_an_unknown_flag_is_refused_before_what_it_leaves_out():
    """Of a misspelt --teacher the spelling is wrong, not that there is no teacher."""
    with pytest.raises(ValueError, match=r"no flag '--techer'.*teacher"):
        parse_recipe(["--task", "sst2", "--techer", "t", "--student_layers", "3"])


def test_each_recipe_runs_what_it_describes(monkeypatch: pytest.MonkeyPatch):
    """`hfdistill train` and both scripts call this one function."""
    ran = []
    for name in ("text", "image"):
        monkeypatch.setattr(recipe_arguments, f"{name}_experiment", lambda recipe, args, name=name: f"{name}'s")
    monkeypatch.setattr(recipe_arguments, "distil_classifier", lambda *given: ran.append(given))
    run_recipe([*FLAGS, "kd"])
    run_recipe(IMAGES, "image-classification")
    assert [(type(recipe), experiment) for recipe, experiment in ran] == [
        (TextClassification, "text's"),
        (ImageClassification, "image's"),
    ]


def test_curves_have_points_in_short_runs_too():
    """The Trainer's 500 steps between points would leave a short run without a curve."""
    for words in ([*FLAGS, "kd"], ["--recipe", "image-classification", *IMAGES]):
        assert 0 < parse_recipe(words)[1].logging_steps < 1  # a share of the run


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
