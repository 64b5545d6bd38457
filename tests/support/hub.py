"""A stand-in for the hub: repositories in memory, and what a client needs of its interface."""

from __future__ import annotations

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
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """Repositories by id, each with its commits: files by path. `asked` are the requests."""

    url: str = ""
    commits: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    private: dict[str, bool] = field(default_factory=dict)

    def commit(self, repo: str, changed: dict[str, bytes]) -> str:
        """Adds files to a repository; the commit."""
        history = self.commits[repo]
        files = {**(history[-1][1] if history else {}), **changed}
        name = hashlib.sha1(f"{repo} {len(history)}".encode()).hexdigest()
        history.append((name, files))
        return name

    def files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and files of a revision; None where there is no such."""
        history = self.commits.get(repo, [])
        found = [c for c in history if revision in ("main", c[0])]
        return found[-1] if found else None


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Says nothing of a client that was killed."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing goes to the terminal."""

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.asked.append(f"POST {path}")
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [f["path"] for f in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]
            self._answer({"files": modes})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            lines = [json.loads(line) for line in body.splitlines()]
            values = [line["value"] for line in lines if line["key"] == "file"]
            changed = {v["path"]: base64.b64decode(v["content"]) for v in values}
            name = self.hub.commit(found[1], changed)
            url = f"{self.hub.url}/{found[1]}/commit/{name}"
            self._answer({"commitUrl": url, "commitOid": name})
        else:
            self._refuse()

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if repo.startswith("others/"):
            self._refuse(403)
            return
        status = 409 if repo in self.hub.commits else 200
        self.hub.commits.setdefault(repo, [])
        self.hub.private.setdefault(repo, asked.get("visibility") == "private")
        self._answer({"url": f"{self.hub.url}/{repo}"}, status)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            self._tree(found[1], found[2])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._info(found[1], found[2] or "main")
        else:
            self._refuse()

    def _file(self, repo: str, revision: str, name: str) -> None:
        there = self.hub.files(repo, revision)
        if there is None or name not in there[1]:
            self._refuse(headers={"X-Error-Code": "EntryNotFound"})
            return
        content = there[1][name]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": there[0]}
        asked = self.headers.get("Range")  # of a download that goes on where it was cut off
        begin = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self._send(content[begin:], headers, 206 if asked else 200)

    def _tree(self, repo: str, revision: str) -> None:
        there = self.hub.files(repo, revision)
        if there is None:
            self._refuse(headers={"X-Error-Code": "RevisionNotFound"})
            return
        files = [
            {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
            for n, c in there[1].items()
        ]
        self._answer(files)

    def _info(self, repo: str, revision: str) -> None:
        if repo in self.hub.cards:
            self._answer({"id": repo, "sha": "0" * 40, "cardData": self.hub.cards[repo]})
            return
        there = self.hub.files(repo, revision)
        if there is None:
            known = repo in self.hub.commits
            code = "RevisionNotFound" if known else "RepoNotFound"
            self._refuse(headers={"X-Error-Code": code})
            return
        siblings = [{"rfilename": name} for name in there[1]]
        self._answer({"id": repo, "sha": there[0], "siblings": siblings})

    def _answer(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def _refuse(self, status: int = 404, headers: dict[str, str] | None = None) -> None:
        self._send(b'{"error": "no"}', headers or {}, status)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
