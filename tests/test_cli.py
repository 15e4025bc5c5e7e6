"""The command `hfdistill`: what it prints, and how it refuses."""

from pathlib import Path

import pytest
from report.output_folder import write_output
from toy_models import toy_bert

from hfdistill.cli import main
from hfdistill.losses import CATALOGUE
from hfdistill.methods import as_text
from hfdistill.presets import PRESETS


def test_methods_lists_every_preset_and_loss_with_its_paper(capsys: pytest.CaptureFixture[str]):
    """The catalogue is only as useful as it is complete; a paper's link tells where to read on."""
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    for name in (*PRESETS, *CATALOGUE):
        assert f"\n  {name}" in printed
    assert printed.count("https://arxiv.org/abs/") >= len(PRESETS)


def test_methods_names_the_kind_of_knowledge():
    """Response, feature and relation are the survey's words for what is transferred."""
    text = as_text()
    assert "SoftTargetLoss (response)" in text
    assert "HiddenStateLoss (feature)" in text
    assert "AttentionRelationLoss (relation)" in text
    assert "TaskLoss (labels)" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("task: sst2\n\tteacher: x\n", "spaces, not tabs"),
        ("task: sst2\nteacher: x\nstudent_layers: 2\nlerning_rate: 0.1\n", "learning_rate"),
        ("task: sst2\nteacher: x\nstudent_layers: two\n", "student_layers must be int"),
        ("task: sst3\nteacher: x\nstudent_layers: 2\n", "sst2"),
        ("task: sst2\nteacher: x\n", "say what the student is"),
        ("task: sst2\nstudent_layers: 2\n", "a teacher is needed"),
        ("teacher: x\nstudent_layers: 2\n", "say what to train on"),
        ("task: sst2\nteacher: x\nstudent_layers: 2\narms: [control, tinbert]\n", "tinybert"),
        ("task: sst2\nteacher: x\nstudent_layers: 2\narms: control\n", "arms must be list"),
    ],
)
def test_a_bad_recipe_is_refused_before_anything_is_loaded(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A misspelt key must not cost an hour of training with a default in its place."""
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    assert main(["train", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_a_missing_recipe_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The path stands in the message, since that is what is wrong."""
    assert main(["train", str(tmp_path / "no.yaml")]) == 2
    assert "no.yaml" in capsys.readouterr().err


def test_methods_names_what_each_loss_needs() -> None:
    """Whether a method runs on a family depends on what that family can show (docs/families.md)."""
    text = as_text()
    for kind in ("logits", "hidden states", "projections"):
        assert f"Needs: {kind} of the student" in text
    assert "1 hidden (HiddenStateLoss)" in text


def test_report_writes_its_files_and_prints_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed is the Markdown that lies beside the page, so that nobody has to look for it."""
    write_output(tmp_path / "run")
    capsys.readouterr()  # of what writing the folder printed
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--no-measure"]) == 0
    written = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == written.strip()
    assert "| teacher" in written
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.md", "report.json", "report.html"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "nowhere"], "nowhere"),
        (["export", "nowhere"], "nowhere"),
        (["push", "nowhere", "me/student"], "nowhere"),
        (["train", "--recipe", "audio-classification"], "image-classification"),
    ],
)
def test_what_is_not_there_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A command that fails says what it looked for, and ends with 2 for scripts."""
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_push_without_a_login_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commonest failure of a first push."""
    monkeypatch.setattr("hfdistill.publishing.repository.get_token", lambda: None)
    toy_bert().save_pretrained(tmp_path)
    assert main(["push", str(tmp_path), "me/student"]) == 2
    assert "hf auth login" in capsys.readouterr().err


def test_an_unknown_option_is_not_swallowed(capsys: pytest.CaptureFixture[str]) -> None:
    """Only `train` hands its words on; elsewhere a misspelt option must not be left out in silence."""
    with pytest.raises(SystemExit):
        main(["push", "folder", "me/student", "--privat"])
    with pytest.raises(SystemExit):
        main(["methods", "--mardown"])
