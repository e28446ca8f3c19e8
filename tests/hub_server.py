"""A Hub inside the test process: the endpoints that huggingface_hub calls to make, fill and read repositories.

It listens on loopback; clients in other processes reach it through `HF_ENDPOINT`. Large files go the LFS way and come
back by a redirect to another host name, as on the real one. Faults are asked for by attributes of `HubServer`.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "loopbackLoopback" * 2
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
    """One repository: `branches` name commits."""

    id: str
    private: bool
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
        puts: SHA-256 of every file that was uploaded whole.
        cut: SHA-256 of files whose upload loses its connection in the middle, every time.
        refuse_commits: how many commits are answered with status 503.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.puts: list[str] = []
        self.cut: set[str] = set()
        self.refuse_commits = 0
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def model(self, repo_id: str) -> Repo:
        return self.repos["model", repo_id]


_REPO = r"(?P<kind>models|datasets|spaces)/(?P<id>[\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", rf"/api/{_REPO}/preupload/(?P<revision>.+)", "preupload"),
    ("POST", rf"/api/{_REPO}/commit/(?P<revision>.+)", "commit"),
    ("POST", rf"/api/{_REPO}/branch/(?P<revision>.+)", "branch"),
    ("POST", rf"/api/{_REPO}/paths-info/(?P<revision>.+)", "paths_info"),
    ("GET", rf"/api/{_REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.*))?", "tree"),
    ("GET", rf"/api/{_REPO}/refs", "refs"),
    ("GET", rf"/api/{_REPO}/commits/(?P<revision>.+)", "commits"),
    ("GET", rf"/api/{_REPO}(/revision/(?P<revision>.+))?", "info"),
    ("POST", r"/((?P<kind>datasets|spaces)/)?(?P<id>[\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
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

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        hub = self.server_hub
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.query = parse_qs(url.query)
        with hub.lock:
            hub.requests.append(f"{self.command} {path}")
        try:
            for methods, pattern, name in _ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in methods.split("|"):
                    self._check_token()
                    getattr(self, name)(**{key: value and unquote(value) for key, value in match.groupdict().items()})
            _fail(404, "NotFound", f"no such page: {self.command} {path}")
        except _Answer as answer:
            self._discard_body()
            self._send(answer)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _send(self, answer: _Answer) -> None:
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body)), **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

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

    # --- who asks, and for what ---

    def _check_token(self) -> None:
        given = self.headers.get("Authorization")
        self.known = given == f"Bearer {TOKEN}"
        if given is not None and not self.known:
            # More talkative than the real one, so that tests see whether clients repeat everything they hear.
            message = "Invalid credentials in Authorization header"
            raise _Answer(401, {"error": f"{message}: {given}"}, X_Error_Message=message)

    def _must_be_known(self) -> None:
        if not self.known:
            _fail(401, "", "Invalid username or password.")

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
        text = self._json()["content"]
        match = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        try:
            fields = yaml.safe_load(match[1]) if match else None
            errors = [] if isinstance(fields, dict) else [{"message": "there is no front matter"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        raise _Answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def create(self) -> NoReturn:
        self._must_be_known()
        asked = self._json()
        kind = asked.get("type") or "model"
        repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
        answer = {"url": f"{self.server_hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}", "id": repo_id}
        with self.server_hub.lock:
            if (kind, repo_id) in self.server_hub.repos:
                raise _Answer(409, {"error": "You already created this repo", **answer})
            private = asked.get("private") or asked.get("visibility") == "private"
            repo = self.server_hub.repos[kind, repo_id] = Repo(repo_id, bool(private))
            repo.commit("main", "initial commit", {".gitattributes": _ATTRIBUTES}, set())
        raise _Answer(200, answer)

    def preupload(self, kind: str, id: str, revision: str) -> NoReturn:
        self._must_be_known()
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
        self._must_be_known()
        repo = self._repo(kind, id)
        asked = json.loads(self._body() or b"{}")
        start = self._commit(repo, asked.get("startingPoint"))
        if revision in repo.branches:
            _fail(409, "", "Reference already exists")
        repo.branches[revision] = start.oid
        raise _Answer(200, {})

    def lfs_batch(self, kind: str | None, id: str) -> NoReturn:
        self._must_be_known()
        self._repo(kind, id)
        objects = []
        for asked in self._json()["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server_hub.objects:
                href = f"{self.server_hub.url}/lfs/{asked['oid']}"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(entry)
        raise _Answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> NoReturn:
        length = int(self.headers["Content-Length"])
        if oid in self.server_hub.cut:
            self.rfile.read(length // 2)
            self._taken = True
            self.connection.shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        content = self._body()
        if hashlib.sha256(content).hexdigest() != oid:
            _fail(400, "", "the content has another hash")
        with self.server_hub.lock:
            self.server_hub.objects[oid] = content
            self.server_hub.puts.append(oid)
        raise _Answer(200)

    def lfs_verify(self, oid: str) -> NoReturn:
        raise _Answer(200 if oid in self.server_hub.objects else 404, {})

    def lfs_get(self, oid: str) -> NoReturn:
        raise _Answer(200, self.server_hub.objects[oid], Content_Type="application/octet-stream", ETag=f'"{oid}"')

    def commit(self, kind: str, id: str, revision: str) -> NoReturn:
        self._must_be_known()
        repo = self._repo(kind, id)
        lines = [json.loads(line) for line in self._body().splitlines()]
        hub = self.server_hub
        with hub.lock:
            if hub.refuse_commits:
                hub.refuse_commits -= 1
                _fail(503, "", "try again later")
            before = self._commit(repo, revision)
            files, lfs, message = dict(before.files), set(before.lfs), ""
            for line in lines:
                value = line["value"]
                path = value.get("path", "")
                if line["key"] == "header":
                    message = value["summary"]
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
            made = repo.commit(revision, message, files, lfs)
        raise _Answer(200, {"commitOid": made.oid, "commitUrl": f"{hub.url}/{id}/commit/{made.oid}", "success": True})

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

    def paths_info(self, kind: str, id: str, revision: str) -> NoReturn:
        commit = self._commit(self._repo(kind, id), revision)
        asked = self._body().decode()
        paths = json.loads(asked)["paths"] if asked.startswith("{") else parse_qs(asked).get("paths", [])
        raise _Answer(200, [_entry(commit, path) for path in paths if path in commit.files])

    def refs(self, kind: str, id: str) -> NoReturn:
        repo = self._repo(kind, id)
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in repo.branches.items()
        ]
        raise _Answer(200, {"branches": branches, "converts": [], "tags": []})

    def commits(self, kind: str, id: str, revision: str) -> NoReturn:
        repo = self._repo(kind, id)
        self._commit(repo, revision)
        made = [
            {"id": it.oid, "title": it.message, "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
            for it in repo.history(revision)
        ]
        raise _Answer(200, made)

    def resolve(self, kind: str | None, id: str, revision: str, path: str) -> NoReturn:
        commit = self._commit(self._repo(kind, id), revision)
        headers = {"X_Repo_Commit": commit.oid}
        if path not in commit.files:
            message = "Entry not found"
            raise _Answer(404, message.encode(), X_Error_Code="EntryNotFound", X_Error_Message=message, **headers)
        content, etag = commit.files[path], f'"{_etag(commit, path)}"'
        if path in commit.lfs:
            elsewhere = f"http://localhost:{self.server_hub.port}/lfs/{etag[1:-1]}"
            headers |= {"X_Linked_Etag": etag, "X_Linked_Size": str(len(content)), "Location": elsewhere}
            raise _Answer(302, **headers)
        raise _Answer(200, content, ETag=etag, Content_Type="text/plain; charset=utf-8", **headers)


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
