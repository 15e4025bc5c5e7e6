"""A hub on loopback: the routes of the Hugging Face hub that pushing and pulling a model take, with files in memory.

It proves the client's side: requests, revisions, atomic commits, what a refusal or a cut connection leaves behind. Of
the hub's own rules it knows a few (names, tokens, private repositories, what metadata of a card must look like).
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.utils._http import close_session

TOKEN = "hf_OnlyForTheHubOnLoopback"
"""The token of the user "me"; any other is unknown."""
RELATIONS = {"adapter", "finetune", "merge", "quantized"}


@dataclass
class Repository:
    """A repository: branches point to commits, a commit is all files by path."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    pulls: int = 0

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Put a commit at the head of a branch; its id."""
        text = repr((branch, message, len(self.messages), sorted(files.items())))
        identity = hashlib.sha1(text.encode()).hexdigest()
        self.commits[identity], self.branches[branch] = files, identity
        self.messages.append(message)
        return identity

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files of a branch or commit."""
        return self.commits[self.branches.get(revision, revision)]

    def has(self, revision: str) -> bool:
        """Whether there is such a branch or commit."""
        return revision in self.branches or revision in self.commits


class Refused(Exception):  # noqa: N818 an answer, not a mistake
    """An answer other than 200: status, the hub's own error code, and its text."""

    def __init__(self, status: int, code: str = "", text: str = "refused") -> None:
        super().__init__(text)
        self.status, self.code = status, code


class Hub:
    """The state of the server, for tests to look into and to disturb.

    Attributes:
        repositories: by full name.
        requests: "METHOD /path" of each request, in order.
        trouble: what the next request whose path contains the key meets: a status, "cut" (the connection breaks in the
            middle of the upload) or "lost" (it breaks after the work is done).
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.trouble: dict[str, int | str] = {}
        self.url = ""

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        """POST /api/repos/create."""
        name = f"{body.get('organization') or 'me'}/{body['name']}"
        if not name.startswith("me/"):
            raise Refused(403, text=f"you may not write to {name.split('/')[0]}")
        if name in self.repositories:
            raise Refused(409, text=json.dumps({"error": "You already created it", "url": f"{self.url}/{name}"}))
        repository = Repository(private=body.get("visibility") == "private")
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self.repositories[name] = repository
        return {"url": f"{self.url}/{name}", "name": name}

    def commit(self, name: str, revision: str, lines: list[dict[str, Any]], pull: bool) -> dict[str, Any]:
        """POST /api/models/{name}/commit/{revision}: all lines or none."""
        repository = self.repositories[name]
        files = dict(repository.files(revision))
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, text=f"this hub takes no {line['key']}")
        branch = revision
        if pull:
            repository.pulls += 1
            branch = f"refs/pr/{repository.pulls}"
        identity = repository.commit(branch, files, lines[0]["value"]["summary"])
        number = f"{self.url}/{name}/discussions/{repository.pulls}" if pull else None
        return {"commitUrl": f"{self.url}/{name}/commit/{identity}", "commitOid": identity, "pullRequestUrl": number}

    def preupload(self, name: str, revision: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST /api/models/{name}/preupload/{revision}: every file goes into the commit, none to LFS."""
        there = self.repositories[name].files(revision)
        ids = {path: hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() for path, data in there.items()}
        return {
            "files": [
                {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": ids.get(path)}
                for path in (file["path"] for file in body["files"])
            ]
        }

    def describe(self, name: str, revision: str) -> dict[str, Any]:
        """GET /api/models/{name}[/revision/{revision}]."""
        repository = self.repositories[name]
        files = [{"rfilename": path} for path in repository.files(revision)]
        head = repository.branches.get(revision, revision)
        return {"id": name, "sha": head, "private": repository.private, "siblings": files, "tags": []}


def complaints(card: str) -> list[str]:
    """What the hub would refuse in a card's metadata, of what this hub knows."""
    block = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    if block is None:
        return ["no metadata"]
    keys = re.findall(r"^([\w-]+):", block[1], re.MULTILINE)
    data = yaml.safe_load(block[1])
    found = [f"{key} stands twice" for key in set(keys) if keys.count(key) > 1]
    bases = data.get("base_model", [])
    for base in [bases] if isinstance(bases, str) else bases:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base):
            found.append(f'"base_model" with value "{base}" is not valid')
    if data.get("base_model_relation", "adapter") not in RELATIONS:
        found.append(f'"base_model_relation" must be one of {sorted(RELATIONS)}')
    for model in data.get("model-index", []):
        for result in model["results"]:
            told = [result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]]
            told += [metric["type"] for metric in result["metrics"]]
            if not all(isinstance(word, str) and word for word in told):
                found.append("a result of model-index lacks its task, dataset or metric")
    if any(not isinstance(tag, str) for tag in data.get("tags", [])):
        found.append('"tags" must be strings')
    return found


class Handler(BaseHTTPRequestHandler):
    """One request; `hub` is set on the class that serves it."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer a GET."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer a HEAD."""
        self._answer()

    def do_POST(self) -> None:
        """Answer a POST."""
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, query = url.path, parse_qs(url.query)
        self.hub.requests.append(f"{self.command} {path}")
        key = next((key for key in self.hub.trouble if key in path), None)
        trouble = None if key is None else self.hub.trouble.pop(key)
        length = int(self.headers.get("Content-Length") or 0)
        if trouble == "cut":
            self.rfile.read(length // 2)
            return self._hang_up()
        body = self.rfile.read(length)
        try:
            if isinstance(trouble, int):
                raise Refused(trouble, text="made to fail")
            status, headers, content = 200, *self._route(path, query, body)
        except Refused as refusal:
            status, headers, content = refusal.status, {"X-Error-Code": refusal.code}, str(refusal).encode()
        if trouble == "lost":
            return self._hang_up()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        return None

    def _hang_up(self) -> None:
        self.close_connection = True

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[dict[str, str], bytes]:
        if path == "/api/validate-yaml":
            found = complaints(json.loads(body)["content"])
            if found:
                raise Refused(400, text=json.dumps({"errors": [{"message": text} for text in found], "warnings": []}))
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            self._check_token()
            return self._json(self.hub.create(json.loads(body)))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/([^/]+)(?:/(.+))?)?", path)
        if api is not None:
            name, action, revision, folder = (unquote(part or "") for part in api.groups())
            self._check_access(name, revision if action != "branch" else "")
            if folder:
                raise Refused(404, "EntryNotFound")
            return self._json(self._model(name, action or "revision", revision or "main", query, body))
        return self._file(path)

    def _file(self, path: str) -> tuple[dict[str, str], bytes]:
        """GET or HEAD /{name}/resolve/{revision}/{file}."""
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if file is None:
            raise Refused(404, text=f"this hub has no {path}")
        name, revision, place = map(unquote, file.groups())
        self._check_access(name, revision)
        repository = self.hub.repositories[name]
        content = repository.files(revision).get(place)
        if content is None:
            raise Refused(404, "EntryNotFound")
        head = repository.branches.get(revision, revision)
        return {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": head}, content

    def _model(self, name: str, action: str, revision: str, query: dict[str, list[str]], body: bytes) -> Any:
        if self.command == "POST":
            self._check_token()
        repository = self.hub.repositories[name]
        if action == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            return self.hub.commit(name, revision, lines, query.get("create_pr") == ["1"])
        if action == "preupload":
            return self.hub.preupload(name, revision, json.loads(body))
        if action == "branch":
            if revision in repository.branches:
                raise Refused(409)
            repository.branches[revision] = repository.branches["main"]
            return {}
        if action == "tree":
            files = repository.files(revision).items()
            return [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in files
            ]
        return self.hub.describe(name, revision)

    def _json(self, content: Any) -> tuple[dict[str, str], bytes]:
        return {"Content-Type": "application/json"}, json.dumps(content).encode()

    def _check_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, text="Invalid username or password.")

    def _check_access(self, name: str, revision: str) -> None:
        """The real hub does not tell a stranger whether a private repository is there."""
        repository = self.hub.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not known):
            raise Refused(404 if known else 401, "RepoNotFound")
        if revision and not repository.has(revision):
            raise Refused(404, "RevisionNotFound")


@contextmanager
def reached(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Point huggingface_hub, which reads its settings when it is imported, at a hub."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()
    yield
    close_session()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on a free port of loopback; its address is `hub.url`."""
    hub = Hub()
    kind = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
