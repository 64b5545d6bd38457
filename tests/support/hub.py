"""A stand-in for the hub: one repository of a folder's files, on a free port of this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPO, COMMIT = "owner/name", "a" * 40


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """The address of a hub with the files of `folder` in REPO, to be set as HF_ENDPOINT."""
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            name = self.path.split("?")[0].rsplit("/", 1)[-1]
            if self.path.startswith(f"/api/models/{REPO}/revision/"):
                siblings = [{"rfilename": name} for name in files]
                self._send(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}))
            elif self.path.startswith(f"/api/models/{REPO}/tree/"):
                tree = [
                    {"type": "file", "path": name, "oid": digests[name], "size": len(data)}
                    for name, data in files.items()
                ]
                self._send(200, json.dumps(tree))
            elif self.path.startswith(f"/{REPO}/resolve/") and name in files:
                self._send_file(name)
            else:
                self._send(404, "{}")

        def _send_file(self, name: str) -> None:
            """The file, or what a download that was cut off asks for."""
            asked = self.headers.get("Range")
            begin = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            size = len(files[name])
            headers = {"ETag": f'"{digests[name]}"', "X-Repo-Commit": COMMIT}
            if asked:
                headers["Content-Range"] = f"bytes {begin}-{size - 1}/{size}"
            self._send(206 if asked else 200, files[name][begin:], headers)

        def _send(
            self, status: int, body: str | bytes, headers: dict[str, str] | None = None
        ) -> None:
            data = body.encode() if isinstance(body, str) else body
            self.send_response(status)
            for name, value in (headers or {"Content-Type": "application/json"}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Says nothing of a client that was killed."""

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
