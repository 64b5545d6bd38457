"""A hook of MkDocs: the site has what the README leads to, each file under its path in the tree.

So the pages are those that people read in the repository, and their links stay as they are: the
README is the home page, and what a page links to outside of docs/ comes along.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

START = "README.md"
PLACES = ("docs/*.md", "docs/site.css")
TARGET = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
ELSEWHERE = re.compile(r"\w+:|#")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the theme, and those of the tree."""
    root = Path(config.config_file_path).parent
    themes = [file for file in files if file.src_dir != config.docs_dir]
    site, urls = config.site_dir, config.use_directory_urls
    return Files([*themes, *(File(name, str(root), site, urls) for name in reached(root))])


def reached(root: Path) -> list[str]:
    """The README, docs/, and the files that links lead to from there, relative to the root."""
    waiting = [START, *(f.relative_to(root).as_posix() for p in PLACES for f in root.glob(p))]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += linked(root, name)
    return sorted(found)


def linked(root: Path, name: str) -> list[str]:
    """The files that a page links to, relative to the root. Those that are missing MkDocs tells."""
    if not name.endswith(".md"):
        return []
    text = CODE.sub("", (root / name).read_text(encoding="utf-8"))
    targets = [t.partition("#")[0] for t in TARGET.findall(text) if not ELSEWHERE.match(t)]
    paths = (os.path.normpath(os.path.join(os.path.dirname(name), target)) for target in targets)
    return [path for path in paths if (root / path).is_file()]
