"""The script that compiles the core for Apple's systems: what it asks of Xcode's tools, which are
not here, and what it makes of their answers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from exporter.native import native_dir
from tests.native.test_app_libraries import CLANG, declared

APPLE = native_dir() / "apple"
SYSTEM_TOOLS = ("sh", "dirname", "mktemp", "rm", "mkdir", "cp", "mv", "sed", "cat")
# Each notes its call, a line a word; those that make files make them.
TOOLS = {
    "cmake": 'case $1 in -S) mkdir "$4" && echo "$*" >"$4/libtinyqmoe_core.a" ;; esac',
    "xcodebuild": 'mkdir "$3" && cat "$5" "$9" >"$3/slices"',
    "ditto": 'cp "$4/slices" "$5"',
    "swift": "echo 0123abcd",
}


@dataclass(frozen=True)
class Mac:
    """A folder of programs that stand in for those of a Mac, and what they were called with."""

    tools: Path
    log: Path

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        script = APPLE / "make-xcframework.sh"
        env = os.environ | {"PATH": str(self.tools), "TMPDIR": str(self.log.parent)}
        command = [self.tools / "sh", script, *words]
        return subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)

    def calls(self, tool: str) -> list[list[str]]:
        """Words of each call of a tool, in order."""
        calls = self.log.read_text().split("\n\n")[:-1]
        return [words for name, *words in (c.split("\n") for c in calls) if name == tool]


@pytest.fixture
def mac(tmp_path: Path) -> Mac:
    mac = Mac(tmp_path / "tools", tmp_path / "log")
    mac.tools.mkdir()
    for name in SYSTEM_TOOLS:
        (mac.tools / name).symlink_to(str(shutil.which(name)))
    for name, work in TOOLS.items():
        note = f'for word in {name} "$@"; do echo "$word"; done >>{mac.log}; echo >>{mac.log}'
        (mac.tools / name).write_text(f"#!{mac.tools}/sh\nset -e\n{note}\n{work}\n")
        (mac.tools / name).chmod(0o755)
    return mac


def test_the_core_is_compiled_for_each_system(mac: Mac, tmp_path: Path) -> None:
    done = mac.run(tmp_path / "package")
    assert done.returncode == 0, done.stderr
    configured = [call for call in mac.calls("cmake") if call[0] == "-S"]
    assert [Path(call[1]).resolve() for call in configured] == [native_dir()] * 3
    options = [dict(re.findall(r"-DCMAKE_(\w+)=(\S+)", " ".join(call))) for call in configured]
    same = {"BUILD_TYPE": "Release", "TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY"}
    versions = dict(re.findall(r"\.(iOS|macOS)\(\.v(\d+)\)", package(native_dir())))
    assert options == [
        same
        | {
            "SYSTEM_NAME": system,
            "OSX_SYSROOT": sdk,
            "OSX_ARCHITECTURES": architectures,
            "OSX_DEPLOYMENT_TARGET": f"{versions['macOS' if sdk == 'macosx' else 'iOS']}.0",
        }
        for system, sdk, architectures in (
            ("iOS", "iphoneos", "arm64"),
            ("iOS", "iphonesimulator", "arm64;x86_64"),
            ("Darwin", "macosx", "arm64;x86_64"),
        )
    ]
    built = [call for call in mac.calls("cmake") if call[0] == "--build"]
    assert [call[1] for call in built] == [call[3] for call in configured]
    assert all(call[2:4] == ["--target", "tinyqmoe_core"] for call in built)


def test_the_package_holds_the_framework_of_all_slices(mac: Mac, tmp_path: Path) -> None:
    out = tmp_path / "new" / "package"
    done = mac.run(out)
    assert done.returncode == 0, done.stderr
    (call,) = mac.calls("xcodebuild")
    folders = [c[3] for c in mac.calls("cmake") if c[0] == "-S"]
    assert call[0] == "-create-xcframework"
    assert call[3::4] == ["-library"] * 3
    assert call[4::4] == [f"{folder}/libtinyqmoe_core.a" for folder in folders]
    assert len(set(call[6::4])) == 1  # the headers
    made = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    framework = "TinyQMoECore.xcframework"
    links = "Sources/Links/Links.swift"
    assert made == {"LICENSE", "Package.swift", links, f"{framework}/slices", f"{framework}.zip"}
    assert mac.calls("swift") == [["package", "compute-checksum", f"{framework}.zip"]]
    assert f'{framework}.zip", checksum: "0123abcd")' in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "new", "tools"]


@pytest.mark.skipif(CLANG is None, reason="NO clang-19: the headers were not read")
def test_the_headers_of_the_framework_are_a_module(mac: Mac, tmp_path: Path) -> None:
    """Beside the module map of another framework in the folder that Xcode copies all to."""
    kept = tmp_path / "headers"
    xcodebuild = mac.tools / "xcodebuild"
    xcodebuild.write_text(f'{xcodebuild.read_text()}\ncp -R "$7" {kept}\n')
    assert mac.run(tmp_path / "package").returncode == 0
    (kept / "module.modulemap").write_text("module Other {}\n")
    source = tmp_path / "import.c"
    calls = "".join(f"  (void)&{name};\n" for name in sorted(declared()))
    source.write_text(f"#pragma clang module import TinyQMoECore\nvoid use(void) {{\n{calls}}}\n")
    flags = ["-x", "c", "-fmodules", f"-fmodules-cache-path={tmp_path / 'cache'}", f"-I{kept}"]
    command = [str(CLANG), *flags, "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def package(folder: Path) -> str:
    return (folder / "Package.swift").read_text()


@pytest.mark.parametrize("line", ["name:", "platforms:", "products:"])
def test_the_package_stands_in_for_that_of_the_sources(line: str) -> None:
    """An app changes the path of its dependency, and nothing else."""
    first = rf"^ *{line} (.*?)(?:, targets:.*)?$"
    theirs, ours = (
        re.findall(first, package(folder), re.M)[0] for folder in (native_dir(), APPLE / "package")
    )
    assert theirs == ours


# ---- what is refused ----


@pytest.mark.parametrize("words", [(), ("a", "b")])
def test_another_number_of_arguments_is_refused(words: tuple[str, ...], mac: Mac) -> None:
    done = mac.run(*words)
    assert (done.returncode, done.stderr) == (
        2,
        "make-xcframework.sh: usage: make-xcframework.sh FOLDER\n",
    )


def test_a_folder_that_exists_is_refused(mac: Mac, tmp_path: Path) -> None:
    done = mac.run(tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path} exists: remove it, or name another folder" in done.stderr


@pytest.mark.parametrize("tool", TOOLS)
def test_a_missing_tool_is_named(tool: str, mac: Mac, tmp_path: Path) -> None:
    (mac.tools / tool).unlink()
    done = mac.run(tmp_path / "package")
    assert done.returncode == 5
    assert f"there is no {tool}: " in done.stderr
    assert not mac.log.exists()


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_that_fails_leaves_no_package(tool: str, mac: Mac, tmp_path: Path) -> None:
    (mac.tools / tool).write_text(f"#!{mac.tools}/sh\nexit 3\n")
    assert mac.run(tmp_path / "package").returncode == 3
    assert not (tmp_path / "package").exists()
    assert {p.name for p in tmp_path.iterdir()} <= {"log", "tools"}
