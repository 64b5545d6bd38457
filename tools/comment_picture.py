"""Draws a Markdown comment as a review shows it, in headless Chromium.

usage: python tools/comment_picture.py COMMENT.md OUT.png
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import markdown

WIDTH = 860
PAGE = """<!DOCTYPE html>
<meta charset="utf-8">
<style>
body {{ margin: 0; padding: 16px; background: #f6f8fa; }}
main {{ padding: 4px 16px; border: 1px solid #d1d9e0; border-radius: 6px; background: #fff;
  font: 14px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1f2328; }}
table {{ border-collapse: collapse; margin: 16px 0; }}
th, td {{ border: 1px solid #d1d9e0; padding: 5px 12px; }}
tr:nth-child(even) td {{ background: #f6f8fa; }}
ul {{ padding-left: 24px; }}
li + li {{ margin-top: 4px; }}
summary {{ cursor: pointer; }}
code {{ background: #eff1f3; border-radius: 4px; padding: 1px 4px; }}
</style>
<main>{}</main>
<script>document.title = document.documentElement.scrollHeight;</script>
"""


def chromium(page: Path, *options: str) -> str:
    """What the browser prints about a page."""
    command = ["chromium-headless-shell", "--no-sandbox", "--hide-scrollbars", *options]
    return subprocess.run(
        [*command, page.as_uri()], check=True, capture_output=True, text=True
    ).stdout


def main(comment: Path, out: Path) -> None:
    text = markdown.markdown(comment.read_text(encoding="utf-8"), extensions=["tables"])
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "comment.html")
        page.write_text(PAGE.format(text), encoding="utf-8")
        said = chromium(page, f"--window-size={WIDTH},200", "--dump-dom")
        height = re.findall(r"<title>(\d+)</title>", said)[0]
        size = f"--window-size={WIDTH},{height}"
        chromium(page, size, "--force-device-scale-factor=1.5", f"--screenshot={out.resolve()}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
