"""A Hub inside the test process: the endpoints that huggingface_hub calls to make, fill and read repositories.

It listens on loopback; clients in other processes (`Client`) reach it through `HF_ENDPOINT`. Large files go the LFS
way, in one piece or in parts, and come back by a redirect to another host name, as on the real one. Faults are asked
for by attributes of `HubServer`. Its Xet storage takes uploads, which it cannot read, and gives nothing back.
"""

import base64
import contextlib
import functools
import hashlib
import json
import os
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from fresh import FreshPython
from huggingface_hub import ModelCard, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

TOKEN = "hf_" + "loopbackLoopback" * 2
_XET_TOKEN = "of-xet-and-for-an-hour"
_LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".model")
_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass
class Commit:
    oid: str
    message: str
    parent: str | None
    files: dict[str, bytes]
    lfs: set[str]  # paths of the files that are kept in the large file storage


@dataclass
class Repo:
    """One repository: `branches` name commits. Nobody has accepted the conditions of a gated one."""

    id: str
    private: bool
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit(self, branch: str, message: str, files: dict[str, bytes], lfs: set[str]) -> Commit:
        parent = self.branches.get(branch)
        text = json.dumps([self.id, len(self.commits), message, parent, sorted(files)])
        oid = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[oid] = Commit(oid, message, parent, files, lfs)
        self.branches[branch] = oid
        return self.commits[oid]

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision, revision))

    def history(self, revision: str = "main") -> list[Commit]:
        """Commits of a branch, the newest first; the last is the one that every new repository has."""
        found, commit = [], self.at(revision)
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent) if commit.parent else None
        return found


class _Answer(Exception):
    """Ends a request with a status, a body and headers."""

    def __init__(self, status: int, body: Any = b"", **headers: str) -> None:
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def _fail(status: int, code: str, message: str) -> NoReturn:
    raise _Answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)


class HubServer:
    """A Hub on loopback, for `with`.

    Attributes:
        url: what `HF_ENDPOINT` has to be.
        repos: repositories by kind and id, such as `("model", "me/tiny")`.
        objects: the large file storage: SHA-256 -> content.
        requests: method and path of every request, in their order.
        tokens_at: host names that were sent a token.
        puts: SHA-256 of every file that was uploaded whole.
        part_puts: of every part of a file that was uploaded whole: the file's SHA-256 and the part's number.
        part_size: files that are larger are uploaded in parts of so many bytes; `None`: in one, however large.
        cut: SHA-256 of files whose upload loses its connection in the middle (of the second part), every time.
        cut_downloads: SHA-256 of files whose next download loses its connection in the middle -> called then.
        read_only: owners in whose repositories the token may read and nothing else.
        xet: files that may come through Xet: SHA-256 -> what they will be found to hold; `None`: there is no Xet.
        cut_xet: whether uploads to Xet lose their connection.
        refuse_commits: how many commits are answered with status 503.
        before_commit: called once, before the next commit is made.
        port: the same for all of a process, one after the other, so that clients find each where the last one was.
    """

    port = 0

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.tokens_at: set[str] = set()
        self.puts: list[str] = []
        self.part_puts: list[tuple[str, int]] = []
        self.part_size: int | None = None
        self.parts: dict[str, dict[int, bytes]] = {}
        self.cut: set[str] = set()
        self.cut_downloads: dict[str, Callable[[], None]] = {}
        self.read_only: set[str] = set()
        self.xet: dict[str, bytes] | None = None
        self.cut_xet = False
        self.refuse_commits = 0
        self.before_commit: Callable[[], object] | None = None
        self._refused: list[tuple[str, _Answer]] = []
        self._lost: list[str] = []
        self.lock = threading.Lock()
        self.connections: list[socket.socket] = []
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", HubServer.port), Handler)
        self._server.daemon_threads = True
        HubServer.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.elsewhere = f"http://localhost:{self.port}"  # where large files lie
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the server goes on after its end"
        for connection in self.connections:  # kept open, they would reach this one through the port of the next
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def model(self, repo_id: str) -> Repo:
        return self.repos["model", repo_id]

    def hold(self, repo_id: str, folder: Path) -> Repo:
        """Make a public model repository of the files of a folder."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        lfs = {name for name in files if name.endswith(_LFS_SUFFIXES)}
        repo = self.repos["model", repo_id] = Repo(repo_id, False)
        repo.commit("main", "all of it", files, lfs)
        self.objects |= {hashlib.sha256(files[name]).hexdigest(): files[name] for name in lfs}
        return repo

    def refuse(self, request: str, status: int, times: int = 1, body: Any = b"", **headers: str) -> None:
        """Answer the next requests whose method and path match a regular expression with that, and do nothing."""
        self._refused += [(request, _Answer(status, body, **headers))] * times

    def lose(self, request: str) -> None:
        """Do what the next such request asks for, and close the connection instead of answering it."""
        self._lost.append(request)


_REPO = r"(?P<kind>models|datasets|spaces)/(?P<id>[\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", rf"/api/{_REPO}/preupload/(?P<revision>.+)", "preupload"),
    ("GET", rf"/api/{_REPO}/xet-write-token/(?P<revision>.+)", "xet_token"),
    ("GET", r"/xet/v1/chunks/.+", "xet_chunk"),
    ("POST", r"/xet/v1/xorbs/.+", "xet_put"),
    ("POST", r"/xet/v1/shards", "xet_shard"),
    ("POST", rf"/api/{_REPO}/commit/(?P<revision>.+)", "commit"),
    ("POST", rf"/api/{_REPO}/branch/(?P<revision>.+)", "branch"),
    ("GET", rf"/api/{_REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.*))?", "tree"),
    ("GET", rf"/api/{_REPO}(/revision/(?P<revision>.+))?", "info"),
    ("POST", r"/((?P<kind>datasets|spaces)/)?(?P<id>[\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/(?P<part>\d+)", "lfs_put_part"),
    ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/complete", "lfs_complete"),
    ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify", "lfs_verify"),
    ("GET|HEAD", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_get"),
    (
        "GET|HEAD",
        r"/((?P<kind>datasets|spaces)/)?(?P<id>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        "resolve",
    ),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def setup(self) -> None:
        super().setup()
        self.server_hub.connections.append(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        hub = self.server_hub
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.query = parse_qs(url.query)
        request = f"{self.command} {path}"
        with hub.lock:
            hub.requests.append(request)
            if "Authorization" in self.headers:
                hub.tokens_at.add(self.headers["Host"].partition(":")[0])
            refused = next((it for it in hub._refused if re.fullmatch(it[0], request)), None)
            if refused is not None:
                hub._refused.remove(refused)
            is_lost = next((it for it in hub._lost if re.fullmatch(it, request)), None)
            if is_lost is not None:
                hub._lost.remove(is_lost)
        try:
            if refused is not None:
                raise refused[1]
            for methods, pattern, name in _ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in methods.split("|"):
                    self._check_token()
                    getattr(self, name)(**{key: value and unquote(value) for key, value in match.groupdict().items()})
            _fail(404, "NotFound", f"no such page: {self.command} {path}")
        except _Answer as answer:
            self._discard_body()
            if is_lost is None:
                self._send(answer)
            else:
                self._hang_up()
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _send(self, answer: _Answer, sent: int | None = None) -> None:
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body)), **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:sent])

    _taken = False

    def handle_one_request(self) -> None:
        self._taken = False
        super().handle_one_request()

    def _body(self) -> bytes:
        self._taken = True
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _discard_body(self) -> None:
        if not self._taken:
            self._body()

    def _json(self) -> Any:
        return json.loads(self._body())

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    # --- who asks, and for what ---

    def _check_token(self) -> None:
        given = self.headers.get("Authorization")
        self.known = given == f"Bearer {TOKEN}"
        if self.path.startswith("/xet/"):
            self.known = given == f"Bearer {_XET_TOKEN}"
        if given is not None and not self.known:
            # More talkative than the real one, so that tests see whether clients repeat everything they hear.
            message = "Invalid credentials in Authorization header"
            raise _Answer(401, {"error": f"{message}: {given}"}, X_Error_Message=message)

    def _must_be_known(self) -> None:
        if not self.known:
            _fail(401, "", "Invalid username or password.")

    def _must_be_writable(self, id: str) -> None:
        """Anybody with a token may propose a commit."""
        self._must_be_known()
        if id.partition("/")[0] in self.server_hub.read_only and not self.query.get("create_pr"):
            _fail(403, "", f"You don't have the rights to write to {id}")

    def _repo(self, kind: str | None, id: str) -> Repo:
        repo = self.server_hub.repos.get(((kind or "models").removesuffix("s"), id))
        if repo is None or (repo.private and not self.known):
            _fail(404 if self.known else 401, "RepoNotFound", "Repository not found")
        return repo

    def _commit(self, repo: Repo, revision: str | None) -> Commit:
        commit = repo.at(revision or "main")
        if commit is None:
            _fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # --- the endpoints ---

    def whoami(self) -> NoReturn:
        self._must_be_known()
        raise _Answer(200, {"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate_yaml(self) -> NoReturn:
        problems = card_problems(self._json()["content"])
        answer: Any = {"errors": [{"message": problem} for problem in problems], "warnings": []}
        if self.headers.get("Accept") == "text/plain":
            answer = "\n".join(problems).encode()
        raise _Answer(400 if problems else 200, answer)

    def create(self) -> NoReturn:
        self._must_be_known()
        asked = self._json()
        kind = asked.get("type") or "model"
        repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
        self._must_be_writable(repo_id)
        answer = {"url": f"{self.server_hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}", "id": repo_id}
        with self.server_hub.lock:
            if (kind, repo_id) in self.server_hub.repos:
                raise _Answer(409, {"error": "You already created this repo", **answer})
            private = asked.get("private") or asked.get("visibility") == "private"
            repo = self.server_hub.repos[kind, repo_id] = Repo(repo_id, bool(private))
            repo.commit("main", "initial commit", {".gitattributes": _ATTRIBUTES}, set())
        raise _Answer(200, answer)

    def preupload(self, kind: str, id: str, revision: str) -> NoReturn:
        self._must_be_writable(id)
        repo = self._repo(kind, id)
        commit = self._commit(repo, revision)
        files = []
        for file in self._json()["files"]:
            path = file["path"]
            is_lfs = path.endswith(_LFS_SUFFIXES) or file["size"] > 10_000_000
            entry = {"path": path, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
            if path in commit.files:
                entry["oid"] = _etag(commit, path)
            files.append(entry)
        raise _Answer(200, {"files": files})

    def branch(self, kind: str, id: str, revision: str) -> NoReturn:
        self._must_be_writable(id)
        repo = self._repo(kind, id)
        asked = json.loads(self._body() or b"{}")
        start = self._commit(repo, asked.get("startingPoint"))
        if revision in repo.branches:
            _fail(409, "", "Reference already exists")
        repo.branches[revision] = start.oid
        raise _Answer(200, {})

    def lfs_batch(self, kind: str | None, id: str) -> NoReturn:
        self._must_be_writable(id)
        self._repo(kind, id)
        objects = []
        for asked in self._json()["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server_hub.objects:
                entry["actions"] = self._lfs_actions(asked["oid"], asked["size"])
            objects.append(entry)
        raise _Answer(200, {"transfer": "basic", "objects": objects})

    def _lfs_actions(self, oid: str, size: int) -> dict[str, Any]:
        hub = self.server_hub
        upload: dict[str, Any] = {"href": f"{hub.elsewhere}/lfs/{oid}"}
        if hub.part_size is not None and size > hub.part_size:
            numbers = range(1, -(-size // hub.part_size) + 1)
            upload = {
                "href": f"{hub.url}/lfs/{oid}/complete",
                "header": {
                    "chunk_size": str(hub.part_size),
                    **{f"{number:05}": f"{hub.elsewhere}/lfs/{oid}/{number}" for number in numbers},
                },
            }
        return {"upload": upload, "verify": {"href": f"{hub.url}/lfs/{oid}/verify"}}

    def lfs_put(self, oid: str) -> NoReturn:
        if oid in self.server_hub.cut:
            self._lose_half()
        self._keep(oid, self._body())
        raise _Answer(200)

    def lfs_put_part(self, oid: str, part: str) -> NoReturn:
        hub = self.server_hub
        if oid in hub.cut and part == "2":
            self._lose_half()
        content = self._body()
        with hub.lock:
            hub.parts.setdefault(oid, {})[int(part)] = content
            hub.part_puts.append((oid, int(part)))
        raise _Answer(200, ETag=f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"')

    def lfs_complete(self, oid: str) -> NoReturn:
        asked, parts = self._json(), self.server_hub.parts.get(oid, {})
        etags = {number: f'"{hashlib.md5(part, usedforsecurity=False).hexdigest()}"' for number, part in parts.items()}
        if asked["oid"] != oid or [(it["partNumber"], it["etag"]) for it in asked["parts"]] != sorted(etags.items()):
            _fail(400, "", "these are not the parts that came")
        self._keep(oid, b"".join(parts[number] for number in sorted(parts)))
        raise _Answer(200, {})

    def _lose_half(self) -> NoReturn:
        self.rfile.read(int(self.headers["Content-Length"]) // 2)
        self._taken = True
        self._hang_up()
        raise ConnectionAbortedError

    def _keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            _fail(400, "", "the content has another hash")
        with self.server_hub.lock:
            self.server_hub.objects[oid] = content
            self.server_hub.puts.append(oid)

    def lfs_verify(self, oid: str) -> NoReturn:
        raise _Answer(200 if oid in self.server_hub.objects else 404, {})

    def lfs_get(self, oid: str) -> NoReturn:
        content = self.server_hub.objects[oid]
        headers = {"Content_Type": "application/octet-stream", "ETag": f'"{oid}"'}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted is not None:
            start = int(wanted[1])
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            raise _Answer(206, content[start:], **headers)
        then = self.server_hub.cut_downloads.pop(oid, None) if self.command == "GET" else None
        if then is not None:
            self._send(_Answer(200, content, **headers), sent=len(content) // 2)
            then()
            self._hang_up()
            raise ConnectionAbortedError
        raise _Answer(200, content, **headers)

    def xet_token(self, kind: str, id: str, revision: str) -> NoReturn:
        self._must_be_writable(id)
        if self.server_hub.xet is None:
            _fail(404, "", "There is no Xet here")
        expiry, url = int(time.time()) + 3600, f"{self.server_hub.elsewhere}/xet"
        headers = {"X_Xet_Cas_Url": url, "X_Xet_Access_Token": _XET_TOKEN, "X_Xet_Token_Expiration": str(expiry)}
        raise _Answer(200, {"casUrl": url, "accessToken": _XET_TOKEN, "exp": expiry}, **headers)

    def xet_chunk(self) -> NoReturn:
        _fail(404, "", "nothing is known of this chunk")

    def xet_put(self) -> NoReturn:
        if self.server_hub.cut_xet:
            self._lose_half()
        self._must_be_known()
        raise _Answer(200, {"was_inserted": True})

    def xet_shard(self) -> NoReturn:
        self._must_be_known()
        self.server_hub.objects |= self.server_hub.xet or {}
        raise _Answer(200, {"result": 1})

    def commit(self, kind: str, id: str, revision: str) -> NoReturn:
        self._must_be_writable(id)
        repo = self._repo(kind, id)
        lines = [json.loads(line) for line in self._body().splitlines()]
        hub = self.server_hub
        with hub.lock:
            if hub.before_commit is not None:
                hub.before_commit()
                hub.before_commit = None
            if hub.refuse_commits:
                hub.refuse_commits -= 1
                _fail(503, "", "try again later")
            before = self._commit(repo, revision)
            files, lfs, message = dict(before.files), set(before.lfs), ""
            for line in lines:
                value = line["value"]
                path = value.get("path", "")
                if line["key"] == "header":
                    if value.get("parentCommit") not in (None, before.oid):
                        _fail(412, "", "A commit has happened since. Please refresh and try again.")
                    message = "\n\n".join(filter(None, (value["summary"], value.get("description"))))
                elif line["key"] == "file":
                    files[path] = base64.b64decode(value["content"])
                    lfs.discard(path)
                elif line["key"] == "lfsFile":
                    if value["oid"] not in hub.objects:
                        _fail(400, "", f"{path} was not uploaded")
                    files[path] = hub.objects[value["oid"]]
                    lfs.add(path)
                elif line["key"] == "deletedFile":
                    del files[path]
                    lfs.discard(path)
                else:
                    _fail(400, "", f"unknown operation {line['key']}")
            answer: dict[str, Any] = {"success": True}
            if self.query.get("create_pr"):
                number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
                revision, answer["pullRequestUrl"] = f"refs/pr/{number}", f"{hub.url}/{id}/discussions/{number}"
                repo.branches[revision] = before.oid
            made = repo.commit(revision, message, files, lfs)
        raise _Answer(200, {"commitOid": made.oid, "commitUrl": f"{hub.url}/{id}/commit/{made.oid}", **answer})

    def info(self, kind: str, id: str, revision: str | None) -> NoReturn:
        repo = self._repo(kind, id)
        commit = self._commit(repo, revision)
        raise _Answer(
            200,
            {
                "id": id,
                "modelId": id,
                "sha": commit.oid,
                "private": repo.private,
                "tags": [],
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            },
        )

    def tree(self, kind: str, id: str, revision: str, path: str | None) -> NoReturn:
        commit = self._commit(self._repo(kind, id), revision)
        prefix = f"{path}/" if path else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        found = [
            _entry(commit, name)
            for name in sorted(commit.files)
            if name.startswith(prefix) and (recursive or "/" not in name[len(prefix) :])
        ]
        folders = {prefix + name[len(prefix) :].split("/")[0] for name in commit.files if name.startswith(prefix)}
        found += [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in folders - {*commit.files}]
        if path and not found:
            _fail(404, "EntryNotFound", f"{path} does not exist")
        raise _Answer(200, found)

    def resolve(self, kind: str | None, id: str, revision: str, path: str) -> NoReturn:
        repo = self._repo(kind, id)
        commit = self._commit(repo, revision)
        headers = {"X_Repo_Commit": commit.oid}
        if repo.gated and path not in ("README.md", ".gitattributes"):
            _fail(403 if self.known else 401, "GatedRepo", f"Access to model {id} is restricted. Ask for access.")
        if path not in commit.files:
            message = "Entry not found"
            raise _Answer(404, message.encode(), X_Error_Code="EntryNotFound", X_Error_Message=message, **headers)
        content, etag = commit.files[path], f'"{_etag(commit, path)}"'
        if path in commit.lfs:
            location = f"{self.server_hub.elsewhere}/lfs/{etag[1:-1]}"
            headers |= {"X_Linked_Etag": etag, "X_Linked_Size": str(len(content)), "Location": location}
            raise _Answer(302, **headers)
        raise _Answer(200, content, ETag=etag, Content_Type="text/plain; charset=utf-8", **headers)


def card_problems(card: str) -> list[str]:
    """What the Hub refuses in the front matter of a card; the rest it takes, known or not."""
    try:
        data = ModelCard(card).data
    except (ValueError, yaml.YAMLError) as error:
        return [" ".join(str(error).split())]
    problems = []
    for licence in [data.license] if data.license is None or isinstance(data.license, str) else data.license:
        if licence is not None and not re.fullmatch(r"[a-z0-9.+-]+", str(licence)):
            problems.append(f'"license" must be one of the Hub\'s ids, not {licence!r}')
        if licence == "other" and not (isinstance(data.license_name, str) and isinstance(data.license_link, str)):
            problems.append('"license_name" and "license_link" are required')
    if data.license_link and not re.fullmatch(r"https?://\S+|LICENSE(\.md|\.txt)?", data.license_link):
        problems.append('"license_link" must be a URL, LICENSE or LICENSE.md')
    for name in ("base_model", "datasets"):
        entries = data.get(name, [])
        for entry in [entries] if isinstance(entries, str) else entries:
            try:
                validate_repo_id(entry)
            except HFValidationError:
                problems.append(f'"{name}" with value {entry!r} is not valid')
    if not all(isinstance(tag, str) for tag in data.tags or []):
        problems.append('"tags" must be texts')
    return problems


def _etag(commit: Commit, path: str) -> str:
    """What identifies a file's content: git's hash of it, or the SHA-256 for a large file."""
    content = commit.files[path]
    if path in commit.lfs:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _entry(commit: Commit, path: str) -> dict[str, Any]:
    oid, size = _etag(commit, path), len(commit.files[path])
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": oid, "size": size}
    if path in commit.lfs:
        entry["lfs"] = {"oid": oid, "size": size, "pointerSize": 134}
    return entry


def reach(hub: HubServer, monkeypatch: pytest.MonkeyPatch, work: Path) -> HubServer:
    """Make it the Hub of this process, with a token and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(work / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


# The client waits half a minute in all before it gives a connection up; nothing is to be learnt from that here.
WITHOUT_WAITING = "import time; time.sleep = lambda seconds: None\n"
COMMAND = WITHOUT_WAITING + "from finecaption_hf.cli import main; main()"


# Of all clients one after the other: libraries read both when they are imported.
_HOMES = tempfile.TemporaryDirectory(prefix="finecaption-test-homes-")
_HOME = Path(_HOMES.name, "home")


@functools.cache
def _python(url: str) -> FreshPython:
    return FreshPython(
        {
            **os.environ,
            "HF_ENDPOINT": url,
            "HF_HOME": str(_HOME),
            "HF_MODULES_CACHE": str(_HOME / "modules"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
        }
    )


class Client:
    """Runs code as a user of the Hub, in fresh processes with a home of its own, `work / "home"`."""

    def __init__(self, hub: HubServer, work: Path) -> None:
        self.work = work
        self.python = _python(hub.url)
        (work / "home").mkdir(exist_ok=True)
        _HOME.unlink(missing_ok=True)
        _HOME.symlink_to(work / "home")

    def run(self, code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        done = self.python.run(code, *arguments, work=self.work, **environment)
        assert TOKEN not in done.stdout + done.stderr
        return done

    def command(self, *arguments: object, **environment: str) -> str:
        """Run a command of finecaption to its good end: what it printed."""
        done = self.run(COMMAND, *arguments, **environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def push(self, *arguments: object, **environment: str) -> dict[str, Any]:
        return json.loads(self.command("push", *arguments, "--json", **environment))

    def fails(self, *arguments: object, **environment: str) -> str:
        """The one line that a command ends in."""
        done = self.run(COMMAND, *arguments, **environment)
        assert done.returncode == 2, done.stderr[-3000:]
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith("Error: ") and "Traceback" not in done.stderr
        return line

    def refused(self, *arguments: object, **environment: str) -> str:
        """The one line that a push ends in."""
        return self.fails("push", *arguments, **environment)
