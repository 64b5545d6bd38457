"""A server of one folder for the tests of imports: it prints its port, and knows Range.

Addresses begin with what goes wrong: /whole/ nothing, /norange/ sends all, /short/ breaks off in the
middle of what is asked for, /flipped/ changes a byte of the program.
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(sys.argv[1])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        _, fault, name, *rest = self.path.split("/")
        file = ROOT / "/".join(rest)
        if not file.is_file():
            self.send_error(404)
            return
        data = bytearray(file.read_bytes())
        if fault == "flipped" and file.name == "model.pte":
            data[len(data) // 2] ^= 1
        asked = self.headers.get("Range")
        begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        begin = 0 if fault == "norange" else begin
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        end = (begin + len(data)) // 2 if fault == "short" and file.name == "model.pte" else len(data)
        self.wfile.write(data[begin:end])

    def log_message(self, *_: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
