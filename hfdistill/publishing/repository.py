"""A student's repository on the Hugging Face hub, and the one commit that brings the student there.

Only files of a list go up: weights as safetensors, configuration, tokenizer or image processor, an ONNX export, the
records and the card. Checkpoints, optimizer, the objective's state, predictions and pickles never do.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from hfdistill.publishing.card import is_draft, model_card
from hfdistill.publishing.folder import ADAPTER, CARD, EXPORT, MODEL, StudentFolder
from hfdistill.publishing.merging import merged_student
from hfdistill.publishing.record import is_repository_name, without_folders

logger = logging.getLogger(__name__)

_LOGIN = "Run `hf auth login` with a token that may write, set HF_TOKEN, or pass token=..."
# keys where older releases of transformers note what a model was loaded from
_ORIGINS = ("_name_or_path", "name_or_path")
# the error of the HTTP library, and huggingface_hub has changed that library
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]


@dataclass(frozen=True)
class HubRepository:
    """Where and how a student is pushed.

    Args:
        name: of the repository; the other fields are those of push_student.

    Raises:
        ValueError: the hub allows no such name.
    """

    name: str
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    commit_message: str = "Push student with hfdistill"
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not is_repository_name(self.name):
            raise ValueError(
                f"{self.name!r} is no name of a repository on the hub: expected 'name' or 'user/name' of letters, "
                "digits, '-', '_' and '.', at most 96, that neither begins nor ends with '-' or '.', has no '--' or "
                "'..' and does not end with '.git'. Give another name (hub_model_id in the training arguments)."
            )

    def api(self) -> HfApi:
        """The hub's client, with a login."""
        token = self.token or get_token()
        if token is None:
            raise PermissionError(f"there is no login to the hub, so nothing can be pushed to {self.name}. {_LOGIN}")
        return HfApi(token=token, library_name="hfdistill", library_version=version("hfdistill"))

    def prepare(self, api: HfApi) -> str:
        """Make repository and branch where they are not there; the repository's full name."""
        name = str(api.create_repo(self.name, private=self.private, exist_ok=True).repo_id)
        if self.private and api.model_info(name).private is False:
            raise ValueError(
                f"{name} exists already and is public, so that a push would publish what should be private. Make it "
                "private on the hub first, or push to another repository."
            )
        if self.revision and not self.revision.startswith("refs/"):
            api.create_branch(name, branch=self.revision, exist_ok=True)
        return name

    def push(self, student: StudentFolder, merge_adapter: bool = False, model: Any = None) -> CommitInfo:
        """Commit a student, merged into its base if asked; `model`: the PeftModel, where it is in memory."""
        with TemporaryDirectory() as scratch, explained(self.name):
            api = self.api()
            if merge_adapter:
                student = merged_student(student, scratch, model)
            _check_loadable(student)
            name = self.prepare(api)
            return api.create_commit(
                name,
                _operations(api, student, name, self.revision),
                commit_message=self.commit_message,
                revision=self.revision,
                create_pr=self.create_pr,
            )


def _operations(
    api: HfApi, student: StudentFolder, name: str, revision: str | None
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """What the commit adds, and what of an earlier student it removes."""
    there = set(api.list_repo_files(name, revision=revision))
    contents: dict[str, str | bytes] = {path.name: _content(path) for path in student.published}
    own = student.path / CARD
    card = own.read_text(encoding="utf-8") if own.is_file() else ""
    if not is_draft(card):
        contents[CARD] = card.encode()
    elif CARD not in there or is_draft(_card_there(api, name, revision)):
        contents[CARD] = model_card(student, card, name).encode()
    else:
        logger.warning("The card of %s was edited on the hub and stays. Edit README.md here to replace it.", name)
    stale = [path for path in sorted(there - set(contents)) if _is_any(path, (*MODEL, *ADAPTER, *EXPORT))]
    return [
        *(CommitOperationDelete(path) for path in stale),
        *(CommitOperationAdd(path, content) for path, content in contents.items()),
    ]


def _content(path: Path) -> str | bytes:
    """A file's path, or its content without the folders of this machine where it may name them."""
    if path.name not in ("config.json", "tokenizer_config.json", "results.json"):
        return str(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    plain = {key: value for key, value in content.items() if key not in (*_ORIGINS, "teacher_folder", "folders")}
    if "protocol" in plain:
        plain["protocol"] = without_folders(plain["protocol"])
    return str(path) if plain == content else (json.dumps(plain, indent=2) + "\n").encode()


def _card_there(api: HfApi, name: str, revision: str | None) -> str:
    with TemporaryDirectory() as folder:
        return Path(api.hf_hub_download(name, CARD, revision=revision, local_dir=folder)).read_text(encoding="utf-8")


def _check_loadable(student: StudentFolder) -> None:
    """Refuse what nobody else could load."""
    if student.adapter and not student.base:
        base = student.adapter.get("base_model_name_or_path")
        raise ValueError(
            f"the adapter in {student.path} belongs to {base or 'a model built in memory'}, which is not on the hub: "
            "nobody else could load it. Push it merged (merge_adapter=True, --merge_adapter), or publish its base and "
            "name that in adapter_config.json."
        )
    if student.config.get("auto_map"):
        raise ValueError(
            f"the student in {student.path} needs code of its own ({sorted(student.config['auto_map'])}), which is "
            "not among the files that are pushed: nobody else could load it. Push it by huggingface_hub's "
            "upload_folder."
        )


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Errors of the hub's client as those that push_student promises, each with what to do."""
    again = "Nothing was published, and the folder is as it was: push again."
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ConnectionError(f"HF_HUB_OFFLINE is set, so {name} cannot be pushed. Unset it.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise PermissionError(
                f"the hub refuses to let this login write to {name} (HTTP {status}): {error}. {_LOGIN}"
            ) from error
        if status == 400:
            raise ValueError(f"the hub refuses what is pushed to {name} (HTTP 400): {error}") from error
        raise ConnectionError(f"the hub failed to take {name} (HTTP {status}): {error}. {again}") from error
    except _HTTP_ERROR as error:
        raise ConnectionError(
            f"the connection to {constants.ENDPOINT} failed while pushing {name}: {error or type(error).__name__}. "
            f"Check the network (and HF_ENDPOINT). {again}"
        ) from error


def _is_any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
