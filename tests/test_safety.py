"""What comes from outside runs no code, names no folder but its own, and no token is written down.

Names of repositories are tested in tests/publishing, and that nothing but the student is pushed.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_input import experiment
from safetensors.torch import load_file
from source_tree import PACKAGE, FunctionNode, Source, sources
from toy_models import toy_bert
from training_toys import arguments, trainer_of
from transformers import BertTokenizer

from hfdistill import HiddenStateLoss, Objective, TaskLoss
from hfdistill.checkpoints.folders import SEAL
from hfdistill.configuration import as_objective, read_configuration
from hfdistill.names import check_folder_name, check_folder_names, without_secrets
from hfdistill.recipe_arguments import parse_recipe
from hfdistill.saved_model import load_saved
from hfdistill.text_classification import TextClassification, text_experiment

OURS = sources(PACKAGE, "recipes")
RUNS_CODE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "code", "runpy"}
# Where a model is loaded without saying whether its code may run: (file, what loads) -> why none can.
NO_CODE_OF_ITS_OWN = {
    ("hfdistill/experiment.py", "type(student)"): "a class in memory, and a folder that the run wrote",
    ("hfdistill/student_state.py", "kind"): "the student's own class, in memory",
    ("recipes/quickstart.py", "AutoModelForSequenceClassification"): "a folder that the script wrote itself",
    ("recipes/quickstart.py", "AutoTokenizer"): "a folder that the script wrote itself",
}
TOKEN = "hf_" + "a1B2c3D4e5" * 4


def calls(source: Source) -> Iterator[tuple[ast.Call, str]]:
    """Every call of a file, and what is called, as it is written."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def said(call: ast.Call, keyword: str) -> str:
    """A keyword of a call, as it is written; "" where it is not given."""
    return next((ast.unparse(entry.value) for entry in call.keywords if entry.arg == keyword), "")


def unsafe(call: ast.Call, name: str) -> bool:
    """Whether a call may run code that stands in what it reads, or hand a line to a shell."""
    return (
        name in {"eval", "exec", "compile", "torch.save", "os.system", "os.popen", "yaml.load", "yaml.full_load"}
        or name in {"yaml.unsafe_load", "yaml.load_all", "pickle.load", "pickle.loads"}
        or (name == "torch.load" and said(call, "weights_only") != "True")
        or said(call, "allow_pickle") not in ("", "False")
        or (name.startswith("subprocess.") and said(call, "shell") not in ("", "False"))
    )


@pytest.mark.parametrize("source", OURS, ids=lambda source: source.place)
def test_nothing_that_is_read_can_run(source: Source) -> None:
    """A checkpoint or a configuration is passed on by strangers; a pickle in it is a program."""
    found = [f"{source.place}:{call.lineno} {name}" for call, name in calls(source) if unsafe(call, name)]
    found += [f"{source.place}:{entry.line}" for entry in source.imports if entry.module.split(".")[0] in RUNS_CODE]
    assert not found, found


def test_unsafe_calls_are_known() -> None:
    """The test above must see what it is there for."""
    bad = "torch.load(f); torch.load(f, weights_only=False); eval(x); np.load(f, allow_pickle=True); yaml.load(f, L)"
    good = "torch.load(f, weights_only=True); model.eval(); np.load(f); yaml.safe_load(f); subprocess.run([a])"
    for text, expected in ((bad, True), (good, False)):
        found = [
            unsafe(node, ast.unparse(node.func)) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)
        ]
        assert set(found) == {expected}


def loaders() -> Iterator[tuple[str, str, bool]]:
    """Every place that loads a model, tokenizer or processor: file, what loads, and whether it speaks of code."""
    for source in OURS:
        for function in ast.walk(source.tree):
            if isinstance(function, FunctionNode):
                aware = "trust_remote_code" in ast.unparse(function)
                called = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
                for what in (func for func in called if isinstance(func, ast.Attribute)):
                    if what.attr in {"from_pretrained", "from_config"}:
                        yield source.place, ast.unparse(what.value), aware


def test_every_loading_says_whether_code_may_run() -> None:
    """Without the keyword transformers asks on the console, and a script that nobody watches waits for ever."""
    found = {(place, what) for place, what, aware in loaders() if not aware}
    assert found == set(NO_CODE_OF_ITS_OWN), found ^ set(NO_CODE_OF_ITS_OWN)


class Evil:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_a_run_writes_no_pickle_of_its_own(tmp_path: Path) -> None:
    """Only the Trainer's own optimizer, schedule and random states are such files, and only in checkpoints."""
    objective = Objective(task=TaskLoss(), hidden=HiddenStateLoss())
    trainer = trainer_of(tmp_path / "run", objective, toy_bert(width=8), save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    pickles = set()
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix != ".md":
            pickles.add(path.relative_to(tmp_path).as_posix())
    trainers = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert pickles == {f"run/checkpoint-{step}/{name}" for step in (1, 2) for name in trainers}


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_pickle_in_a_checkpoint_does_not_run(name: str, tmp_path: Path) -> None:
    """A checkpoint that somebody sent must not be a program; `training_args.bin` is not even opened."""
    trainer_of(tmp_path / "run", save_strategy="steps", save_steps=1).train()
    mark, checkpoint = tmp_path / "ran", tmp_path / "run" / "checkpoint-1"
    torch.save(Evil(mark), checkpoint / name)
    (checkpoint / SEAL).unlink()  # who sends it seals it, too
    second = trainer_of(tmp_path / "second")
    if name == "training_args.bin":
        second.train(resume_from_checkpoint=str(checkpoint))
    else:
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            second.train(resume_from_checkpoint=str(checkpoint))
    assert not mark.exists()
    torch.load(checkpoint / name, weights_only=False)
    assert mark.exists(), "the file would not have done any harm, and this test shows nothing"


def test_weights_in_a_pickle_do_not_run(tmp_path: Path) -> None:
    """Old teachers on the hub have `pytorch_model.bin`: what is no tensor in it is refused."""
    toy_bert(layers=4).config.save_pretrained(tmp_path)
    torch.save(Evil(tmp_path / "ran"), tmp_path / "pytorch_model.bin")
    with pytest.raises(
        (pickle.UnpicklingError, ValueError, OSError), match=r"(?i)weights.only|cannot be (loaded|read)"
    ):
        trainer_of(tmp_path / "run", teacher=str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir", "module:os"])
def test_yaml_makes_no_objects(tag: str, tmp_path: Path) -> None:
    """A configuration is plain values; `yaml.load` would have made the folder."""
    path = tmp_path / "c.yaml"
    path.write_text(f"data_dir: !!python/{tag} [{tmp_path / 'made'}]\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"c\.yaml is not valid YAML.*python/"):
        read_configuration(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["evil:Loss", "../evil:Loss", "{here}/evil.py:Loss", ".evil:Loss", "evil:Loss()"])
def test_a_loss_is_imported_never_read_from_a_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be imported was installed by the user; a file beside a configuration came with it."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    with pytest.raises(ValueError, match=r"cannot be imported|names no class of a module"):
        as_objective({"mine": {"loss": name.format(here=tmp_path)}})
    assert not (tmp_path / "ran").exists()


def with_code(folder: Path) -> Path:
    """A model's folder that brings code of its own, as a repository on the hub may; where it ran it says `ran`."""
    toy_bert(layers=4, seed=1).save_pretrained(folder)
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(59)))
    BertTokenizer(vocab={word: at for at, word in enumerate(words)}).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    text = json.dumps(config | {"auto_map": own, "model_type": "own"})
    (folder / "config.json").write_text(text, encoding="utf-8")
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import BertConfig, BertForSequenceClassification\n"
        f"Path({str(folder / 'ran')!r}).touch()\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        "class OwnModel(BertForSequenceClassification):\n    config_class = OwnConfig\n",
        encoding="utf-8",
    )
    return folder


def silent(*_: object) -> str:
    """Nobody is there to answer."""
    raise AssertionError("asked on the console")


def test_code_of_a_model_does_not_run_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As teacher, student or folder of a report; nobody is asked on the console."""
    monkeypatch.setattr("builtins.input", silent)
    folder = with_code(tmp_path / "theirs")
    recipe = {"task": "sst2", "student_layers": 2, "data_dir": str(tmp_path / "data")}
    args = arguments(tmp_path / "run")
    monkeypatch.setattr("hfdistill.text_classification.load_rows", lambda recipe: {})
    for act in (
        lambda: trainer_of(tmp_path / "run", teacher=str(folder)),
        lambda: load_saved(folder),
        lambda: text_experiment(TextClassification(teacher=str(folder), **recipe), args),
    ):
        with pytest.raises(ValueError, match=r"brings code of its own.*read it.*trust_remote_code=True"):
            act()
    assert not (folder / "ran").exists()


def test_code_of_a_model_runs_where_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some families are on the hub only so; and the test above would pass if nothing could ever be loaded."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = with_code(tmp_path / "theirs")
    trainer = trainer_of(tmp_path / "run", teacher=str(folder), trust_remote_code=True)
    assert (folder / "ran").exists()
    assert type(trainer.teacher.model).__name__ == "OwnModel"  # type: ignore[union-attr]


BAD_NAMES = [
    "",
    " ",
    ".",
    "..",
    "../x",
    "a/b",
    "a\\b",
    "/x",
    "a\0b",
    "a\nb",
    "a:b",
    "a*",
    "x.",
    " x",
    "con",
    "NUL.txt",
]


@pytest.mark.parametrize("name", [*BAD_NAMES, "x" * 101])
def test_a_name_leads_nowhere_else(name: str) -> None:
    """A comparison that came by mail must not write outside the folder that its reader named."""
    with pytest.raises(ValueError, match="a folder is named after it"):
        check_folder_name(name, "arm")


def test_names_of_folders_that_are_fine() -> None:
    """Whatever a person calls an arm; what is no text is told."""
    check_folder_names(["kd", "kd_t4", "KD-2", "Zürich", "a b", "1", "pkd.v2", "console"], "arm")
    with pytest.raises(TypeError, match="must be text, got 1"):
        check_folder_name(1, "arm")
    with pytest.raises(ValueError, match="would share a folder"):
        check_folder_names(["kd", "KD"], "arm")


def test_paths_in_a_configuration_are_read_from_where_one_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the command line: a file that is moved keeps its meaning only so."""
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "c.yaml"
    path.write_text("task: sst2\nteacher: t\nstudent_layers: 3\nuse_cpu: true\naccelerator_config: a.json\n")
    (tmp_path / "configs" / "a.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"accelerator_config names a\.json"):
        parse_recipe([str(path)])
    (tmp_path / "a.json").write_text('{"even_batches": false}')
    assert parse_recipe([str(path)])[1].accelerator_config.even_batches is False  # type: ignore[union-attr]


def test_no_token_is_written_or_logged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Checkpoints, logs, records and cards are published; whoever reads the token can write to the account."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    address = "https://me:secret@example.org/data"
    args = arguments(tmp_path, hub_token=TOKEN, save_strategy="steps", save_steps=1, run_name=f"run of {TOKEN}")
    experiment(arguments=args, data={"name": address, "token": TOKEN})(tmp_path)
    texts = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"results.json", "distillation.json", "README.md", "trainer_state.json"} <= {path.name for path in texts}
    found = [path.name for path, text in texts.items() if TOKEN.encode() in text or b"secret" in text]
    assert not found
    assert "hf_..." in (tmp_path / "kd" / "seed-0" / "results.json").read_text(encoding="utf-8")
    captured = capfd.readouterr()
    assert TOKEN not in caplog.text + captured.out + captured.err


def test_secrets_are_cut_and_names_stay() -> None:
    """`hf_` begins names of packages, too, and an address without a login is none."""
    assert without_secrets(f"{TOKEN} and {TOKEN}") == "hf_... and hf_..."
    assert without_secrets("https://u:p@h.org/x, https://h.org/x@y") == "https://h.org/x, https://h.org/x@y"
    for kept in ("hf_transfer", "hf_distillation_of_bert", "user@example.org", os.sep.join("ab")):
        assert without_secrets(kept) == kept
