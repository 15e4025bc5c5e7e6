"""Students pushed to a hub on loopback by real requests, and pulled from it by processes that know nothing of them."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, Hub, complaints, reached, running_hub
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file
from source_tree import REPOSITORY
from toy_models import toy_bert, with_lora
from transformers import AutoModelForSequenceClassification

from hfdistill.objective_state import OBJECTIVE_STATE
from hfdistill.publishing.push import push_student

PROGRAM = str(Path(__file__).with_name("publishing_runs.py"))
STUDENT = {"README.md", "config.json", "distillation.json", "model.safetensors"}
INVALID = ("", "a/b/c", "me/", "/me", "-me", "me/x--y", "me/a..b", "me/x.git", "me/hä", "me/a b", "x" * 97)


def run(what: str, hub: Hub, folder: Path) -> None:
    """Push or pull in a process of its own, which has its own cache."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / f"home-{what}")}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(REPOSITORY / "tests"), str(REPOSITORY))),
    }
    program = [sys.executable, PROGRAM, what, str(folder)]
    ended = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Path]]:
    """A hub to which everything was pushed by one process and from which another pulled it, and their folder."""
    folder = tmp_path_factory.mktemp("published")
    with running_hub() as hub:
        run("push", hub, folder)
        run("pull", hub, folder)
        yield hub, folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty hub that this process is logged in to."""
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running_hub() as server, reached(server.url, monkeypatch):
        yield server


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A saved student, among things that must never be published."""
    folder = tmp_path / "student"
    toy_bert(width=8).save_pretrained(folder)
    for name in ("training_args.bin", "optimizer.pt", "run.json", OBJECTIVE_STATE, "predictions.safetensors", ".env"):
        (folder / name).write_text(TOKEN)
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "model.safetensors").write_text("old")
    return folder


def digest(folder: Path) -> dict[str, str]:
    """Every file of a folder, by its content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("pulled", ["bert", "bert v2", "bert pull request", "vit", "lora", "lora merged"])
def test_a_pulled_student_answers_as_the_one_that_was_pushed(published: tuple[Hub, Path], pulled: str) -> None:
    """That is what publishing is for; a head that was not in it, or projectors that were, would show here."""
    before = load_file(published[1] / "pushed.safetensors")[pulled.split()[0]]
    after = load_file(published[1] / "pulled.safetensors")
    if pulled == "lora merged":  # W + BA, once rounded, is not W x + B A x
        torch.testing.assert_close(after[pulled], before, rtol=0, atol=1e-6)
        assert torch.equal(after[pulled], after["lora merged from folder"])
    else:
        assert torch.equal(after[pulled], before)


def test_the_student_is_pushed_and_nothing_else(published: tuple[Hub, Path]) -> None:
    """Pickles, the objective's state and checkpoints lie in the same folder."""
    files = {
        name: set(repository.files()) - {".gitattributes"} for name, repository in published[0].repositories.items()
    }
    lora = {"README.md", "adapter_config.json", "adapter_model.safetensors", "distillation.json"}
    assert files == {
        "me/bert": STUDENT | {"tokenizer.json", "tokenizer_config.json"},
        "me/vit": STUDENT | {"preprocessor_config.json"},
        "me/base": STUDENT - {"distillation.json"},
        "me/lora": lora,
        "me/merged-from-folder": STUDENT,
    }
    assert {"model.onnx", "onnx.json"} <= set(published[0].repositories["me/bert"].files("v2")), "it was exported then"
    assert (published[1] / "bert" / "checkpoint-2" / OBJECTIVE_STATE).is_file(), "else the test proves nothing"


def test_nothing_pushed_tells_of_the_machine_or_the_login(published: tuple[Hub, Path]) -> None:
    """A published file is read by everybody: neither a token nor a path of this machine may stand in it."""
    folders = (published[1], Path.home(), REPOSITORY, sys.prefix)
    secrets = (TOKEN.encode(), *(f"{folder}/".encode() for folder in folders))
    for name, repository in published[0].repositories.items():
        for commit in repository.commits.values():
            found = [path for path, content in commit.items() for secret in secrets if secret in content]
            assert not found, f"{name}: {found}"


def test_every_push_is_one_commit(published: tuple[Hub, Path]) -> None:
    """Between two commits the repository would hold one student's weights and another's configuration."""
    messages = {name: repository.messages[1:] for name, repository in published[0].repositories.items()}
    training = ["Training in progress, step 1", "Training in progress, step 2"]
    assert messages == {
        "me/bert": [*training, "End of training", "To a branch"],
        "me/vit": ["End of training"],
        "me/base": ["Push student with hfdistill", "Push student with hfdistill"],
        "me/lora": ["End of training", "End of training"],
        "me/merged-from-folder": ["Push student with hfdistill"],
    }


def test_a_private_repository_is_closed_to_strangers(published: tuple[Hub, Path]) -> None:
    """hub_private_repo that is not passed on publishes what must not be."""
    assert published[0].repositories["me/vit"].private
    with pytest.raises(urllib.error.HTTPError, match="401") as refusal:
        urllib.request.urlopen(f"{published[0].url}/me/vit/resolve/main/config.json")
    refusal.value.close()
    urllib.request.urlopen(f"{published[0].url}/me/bert/resolve/main/config.json").close()


def test_a_branch_and_a_pull_request_leave_main_alone(published: tuple[Hub, Path]) -> None:
    """Who asks for either does not want what users of main load to change."""
    base = published[0].repositories["me/base"]
    assert set(base.branches) == {"main", "refs/pr/1"}
    assert "distillation.json" not in base.files()
    assert "distillation.json" in base.files("refs/pr/1")
    lora = published[0].repositories["me/lora"]
    assert {"config.json", "model.safetensors"} <= set(lora.files("merged")), "merged, it is a plain folder"
    assert not {"adapter_config.json", "adapter_model.safetensors"} & set(lora.files("merged")), "it would go on top"


def test_pushed_cards_are_valid_and_name_their_repository(published: tuple[Hub, Path]) -> None:
    """The hub refuses a commit whose card has wrong metadata, and a reader copies the lines that load the model."""
    for name, repository in published[0].repositories.items():
        card = repository.files()["README.md"].decode()
        assert not complaints(card)
        assert f'from_pretrained("{name}")' in card or f'from_pretrained(base, "{name}")' in card
    bert = ModelCard(published[0].repositories["me/bert"].files()["README.md"].decode())
    assert (bert.data.license, bert.data.language) == ("mit", "en")
    lora = ModelCard(published[0].repositories["me/lora"].files()["README.md"].decode())
    assert (lora.data.library_name, lora.data.base_model, lora.data["base_model_relation"]) == (
        "peft",
        "me/base",
        "adapter",
    )


@pytest.mark.parametrize(("trouble", "arrived"), [("cut", False), ("lost", True)])
def test_a_push_that_is_cut_off_can_be_repeated(hub: Hub, student: Path, trouble: str, arrived: bool) -> None:
    """Networks fail in the middle; neither the folder nor the repository may be left half done."""
    before = digest(student)
    hub.trouble["/commit/"] = trouble
    with pytest.raises(ConnectionError, match=r"me/s.*push again"):
        push_student(student, "me/s")
    assert digest(student) == before
    repository = hub.repositories["me/s"]
    assert ("model.safetensors" in repository.files()) == arrived
    pushed = push_student(student, "me/s")
    assert repository.files()["model.safetensors"] == (student / "model.safetensors").read_bytes()
    assert len(repository.messages) == 2, "what has arrived already is not committed twice"
    assert pushed.oid == repository.branches["main"]
    assert digest(student) == before


@pytest.mark.parametrize(("status", "error"), [(403, PermissionError), (401, PermissionError), (500, ConnectionError)])
def test_a_refusal_is_explained(hub: Hub, student: Path, status: int, error: type[Exception]) -> None:
    """The hub's own words do not say what to do."""
    hub.trouble["/commit/"] = status
    advice = "hf auth login" if error is PermissionError else "push again"
    with pytest.raises(error, match=rf"HTTP {status}[\s\S]*{advice}"):
        push_student(student, "me/s")


def test_somebody_elses_repository_is_refused(hub: Hub, student: Path) -> None:
    """The commonest mistake with organisations."""
    with pytest.raises(PermissionError, match="refuses to let this login write"):
        push_student(student, "you/s")


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_name_is_refused_before_anything_is_asked(hub: Hub, student: Path, name: str) -> None:
    """The hub's answer to such a name comes after the upload, or is a 404 that misleads."""
    with pytest.raises(ValueError, match="no name of a repository"):
        push_student(student, name)
    assert not hub.requests


def test_without_a_login_the_command_is_named(hub: Hub, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a token the hub would only say 401."""
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="hf auth login"):
        push_student(student, "me/s")
    assert not hub.requests
    assert push_student(student, "me/s", token=TOKEN).commit_url


def test_without_a_network_one_attempt_is_made(student: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Client libraries try again for half a minute, and then show a stack of their own."""
    with running_hub() as gone:
        pass
    with reached(gone.url, monkeypatch), pytest.raises(ConnectionError, match=rf"{gone.url}.*Check the network"):
        push_student(student, "me/s")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
        push_student(student, "me/s")


def test_a_folder_without_a_student_is_refused(hub: Hub, student: Path, tmp_path: Path) -> None:
    """An experiment's output folder holds students, but is none."""
    with pytest.raises(ValueError, match=r"holds no student.*'student'|holds no student.*no file"):
        push_student(tmp_path, "me/s")
    with pytest.raises(FileNotFoundError, match="no folder"):
        push_student(tmp_path / "nowhere", "me/s")
    with pytest.raises(ValueError, match="nothing to merge"):
        push_student(student, "me/s", merge_adapter=True)
    assert not hub.repositories


def test_a_public_repository_takes_no_private_student(hub: Hub, student: Path) -> None:
    """The hub ignores `private` of a repository that is there, and would show the student to everybody."""
    push_student(student, "me/s")
    with pytest.raises(ValueError, match="exists already and is public"):
        push_student(student, "me/s", private=True)
    push_student(student, "me/p", private=True)
    assert push_student(student, "me/p", private=True).commit_url
    assert hub.repositories["me/p"].private


def test_an_earlier_student_is_gone_and_other_files_stay(hub: Hub, student: Path, tmp_path: Path) -> None:
    """An adapter left in the repository would be loaded on top of the new weights."""
    push_student(student, "me/s")
    repository = hub.repositories["me/s"]
    repository.files().update({"adapter_config.json": b"{}", "adapter_model.safetensors": b"", "notes.md": b"mine"})
    push_student(student, "me/s", commit_message="Again")
    assert "adapter_config.json" not in repository.files()
    assert "adapter_model.safetensors" not in repository.files()
    assert repository.files()["notes.md"] == b"mine"
    assert set(repository.files()) == (STUDENT - {"distillation.json"}) | {"notes.md", ".gitattributes"}


def test_a_card_that_somebody_wrote_is_kept(hub: Hub, student: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Words that a person wrote are not overwritten by a program: neither on the hub nor here."""
    push_student(student, "me/s")
    files = hub.repositories["me/s"].files()
    files["README.md"] += b"Edited on the hub.\n"
    with caplog.at_level(logging.WARNING):
        push_student(student, "me/s")
    assert hub.repositories["me/s"].files()["README.md"].endswith(b"Edited on the hub.\n")
    assert "was edited on the hub and stays" in caplog.text
    (student / "README.md").write_text("---\nlicense: mit\n---\nMy own card.\n")
    push_student(student, "me/s")
    assert hub.repositories["me/s"].files()["README.md"] == (student / "README.md").read_bytes()


def test_metadata_that_the_hub_refuses_stops_the_push(hub: Hub, student: Path) -> None:
    """Nothing may be uploaded with a card that the hub cannot read."""
    (student / "README.md").write_text("---\nbase_model: /home/me/teacher\n---\nMy own card.\n")
    with pytest.raises(ValueError, match=r'"base_model" with value "/home/me/teacher" is not valid'):
        push_student(student, "me/s")
    assert set(hub.repositories["me/s"].files()) == {".gitattributes"}


def test_results_are_pushed_without_the_folders_of_this_machine(hub: Hub, student: Path) -> None:
    """A protocol notes where data and outputs lie; a label that looks like a path is none."""
    arm = {"name": "kd", "metrics": [{"accuracy": 0.5}], "agreement": [], "kl": [], "difference": None}
    arm |= {"parameters": 1, "bytes": 1, "samples_per_second": None, "seconds": []}
    protocol = {"arguments": {"output_dir": "/home/me/out", "other": ["/data/x/train.csv"]}, "seeds": [0]}
    found = {"metric": "accuracy", "teacher": {**arm, "name": "teacher"}, "arms": [arm], "protocol": protocol}
    (student / "results.json").write_text(
        json.dumps({**found, "labels": ["/m/0k4j"], "folders": {"kd": ["/home/me"]}})
    )
    push_student(student, "me/s")
    content = hub.repositories["me/s"].files()["results.json"]
    assert b"/home" not in content
    assert b"/data" not in content
    assert json.loads(content)["protocol"]["arguments"] == {"output_dir": "out", "other": ["train.csv"]}
    assert json.loads(content)["labels"] == ["/m/0k4j"]


def test_an_adapter_without_a_published_base_is_refused(hub: Hub, tmp_path: Path) -> None:
    """A base that lies on this machine is a base that nobody else has."""
    toy_bert().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    with_lora(base, ["query"]).save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match=r"not on the hub[\s\S]*merge_adapter=True"):
        push_student(tmp_path / "lora", "me/s")
    with pytest.raises(ValueError, match=r"head unknown.*trainer\.push_to_hub\(merge_adapter=True\)"):
        push_student(tmp_path / "lora", "me/s", merge_adapter=True)
    assert not hub.repositories
