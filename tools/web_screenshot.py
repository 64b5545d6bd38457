"""Draws the page of web_demo, which loads a bundle and answers, in headless Chromium.

usage: python tools/web_screenshot.py SITE QUESTION OUT.png

SITE is a folder as web_demo/README.md makes it, with a bundle in SITE/bundle.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LOAD_SECONDS = 600
SIZE = "760,330"
# Uses the page as a person would. The picture is drawn once the page is loaded, and the image that
# is added here keeps it loading until the answer is there.
USE = """
<img id="wait" src="/answered" alt="" hidden>
<script type="module">
const status = document.getElementById("status");
const pause = () => new Promise((done) => setTimeout(done, 50));
const until = async (pattern) => {
  while (!pattern.test(status.textContent)) await pause();
};
while (document.getElementById("ask").onsubmit === null) await pause();
document.getElementById("address").value = "bundle";
document.getElementById("open").requestSubmit();
await until(/ready/);
document.getElementById("question").value = QUESTION;
document.getElementById("ask").requestSubmit();
await until(/tokens, /);
await fetch("/answered", { method: "POST" });
</script>
"""


class Handler(SimpleHTTPRequestHandler):
    """Serves a site, and answers GET /answered only after a POST to it."""

    answered = threading.Event()

    def do_GET(self) -> None:
        if self.path != "/answered":
            super().do_GET()
            return
        self.answered.wait(LOAD_SECONDS)
        self.send_error(404)

    def do_POST(self) -> None:
        self.answered.set()
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Says nothing."""


def draw(site: Path, question: str, out: Path) -> None:
    """Draws the page after the answer to a question."""
    chromium = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if chromium is None:
        sys.exit("web_screenshot.py: install chromium-headless-shell first")
    page = site / "index.html"
    use = USE.replace("QUESTION", json.dumps(question))
    (site / "screenshot.html").write_text(page.read_text(encoding="utf-8").replace("</html>", use))
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site))) as server,
        tempfile.TemporaryDirectory() as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        flags += [f"--window-size={SIZE}", f"--screenshot={out.resolve()}", "--hide-scrollbars"]
        address = f"http://127.0.0.1:{server.server_port}/screenshot.html"
        subprocess.run([chromium, *flags, address], check=True, timeout=LOAD_SECONDS)
        server.shutdown()


if __name__ == "__main__":
    draw(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
