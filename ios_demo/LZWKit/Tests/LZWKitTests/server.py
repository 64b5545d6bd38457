"""A server of one folder for the tests of imports: it prints its port, and knows Range.

Addresses begin with what goes wrong: /whole/ nothing, /norange/ sends all, /short/ breaks off in
the middle of what is asked for, /flipped/ changes a byte of the program. It ends with its stdin.
"""

import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(sys.argv[1])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        _, fault, _bundle, *path = self.path.split("/")
        file = ROOT / "/".join(path)
        if not file.is_file():
            self.send_error(404)
            return
        data, is_program = bytearray(file.read_bytes()), file.name == "model.pte"
        if fault == "flipped" and is_program:
            data[len(data) // 2] ^= 1
        asked = self.headers.get("Range")
        begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        begin = 0 if fault == "norange" else begin
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        end = (begin + len(data)) // 2 if fault == "short" and is_program else len(data)
        self.wfile.write(data[begin:end])

    def log_message(self, *_: object) -> None:
        pass


def end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


threading.Thread(target=end_with_stdin, daemon=True).start()
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
