"""The generator of class files for Android's newer API, judged by javac."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TOOL = ROOT / "android_demo" / "tools" / "newer_api.py"
JAVAC = shutil.which("javac")
pytestmark = pytest.mark.skipif(JAVAC is None, reason="javac is not there (a JDK)")

OLD = """package android.os;
public class Power {
    public static final int FULL = 1;
    public boolean isOn() { return true; }
}
"""
STUBS = """
class Power(java.lang.Object):
    FULL: typing.ClassVar[int] = ...
    HOT: typing.ClassVar[int] = ...
    def isOn(self) -> bool: ...
    @typing.overload
    def watch(self, listener: Power.Listener, /) -> None: ...
    @typing.overload
    def watch(self, times: int | java.jlong, listener: Power.Listener, /) -> None: ...
    def level(self) -> int: ...
    def names(self) -> java.util.List[java.lang.String]: ...
    @staticmethod
    def all(*which: str | java.lang.String) -> Power: ...

    class Listener(java.lang.Object):
        def onHeat(self, arg1: int | java.jint | java.lang.Integer, /) -> None: ...

class Fan(Power):
    speed: int = ...
    def __init__(self, blades: int | java.jint | java.lang.Integer, /) -> None: ...
"""
JAVA_UTIL = "class List(java.lang.Object): ...\n"
JAVA_LANG = "class Object: ...\nclass String(Object): ...\n"
GOOD = """class Good {
    boolean use(android.os.Power power) {
        int before = android.os.Power.HOT + android.os.Power.FULL;
        power.watch(level -> System.out.println(level + before));
        power.watch(7L, level -> { });
        for (String name : power.names()) System.out.println(name);
        android.os.Fan fan = new android.os.Fan(3);
        fan.speed = before;
        return android.os.Power.all("a", "b").isOn() && fan.isOn();
    }
}
"""


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A class path: the newer classes before the old ones."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "Power.java").write_text(OLD)
    assert javac(folder, "Power.java", "") == ""
    jar = folder / "old.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        archive.write(folder / "android" / "os" / "Power.class", "android/os/Power.class")
    wheel = folder / "stubs.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for package, text in (("android", STUBS), ("java", JAVA_UTIL)):
            where = "os" if package == "android" else "util"
            archive.writestr(f"{package}-stubs/{where}/__init__.pyi", text)
        archive.writestr("java-stubs/lang/__init__.pyi", JAVA_LANG)
    kotlin = folder / "App.kt"
    kotlin.write_text("import android.os.Power\nimport android.os.Fan\n")
    done = run_tool(jar, wheel, folder / "newer.jar", kotlin)
    assert done.returncode == 0, done.stderr
    return f"{folder / 'newer.jar'}:{jar}"


def run_tool(jar: Path, wheel: Path, out: Path, file: Path) -> subprocess.CompletedProcess[str]:
    options = ["--jar", str(jar), "--stubs", str(wheel), "--out", str(out), str(file)]
    return subprocess.run(
        [sys.executable, TOOL, *options], capture_output=True, text=True, check=False
    )


def javac(folder: Path, file: str, path: str) -> str:
    """What the compiler says against a file; empty: nothing."""
    command = [str(JAVAC), "-cp", path or ".", "-d", ".", file]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


def test_what_is_newer_and_what_is_old_is_there(classes: str, tmp_path: Path) -> None:
    (tmp_path / "Good.java").write_text(GOOD)
    assert javac(tmp_path, "Good.java", classes) == ""


@pytest.mark.parametrize(
    "wrong",
    [
        ("Power.HOT", "Power.HOTT"),
        ("power.watch(7L", 'power.watch("7"'),
        ("new android.os.Fan(3)", "new android.os.Fan()"),
        ("for (String name", "for (Integer name"),
        ("return android", "power.level(); return android"),
    ],
    ids=["constant", "parameter", "constructor", "generic", "a number of no known size"],
)
def test_what_is_not_there_is_refused(classes: str, tmp_path: Path, wrong: tuple[str, str]) -> None:
    assert wrong[0] in GOOD
    (tmp_path / "Good.java").write_text(GOOD.replace(*wrong))
    assert "error:" in javac(tmp_path, "Good.java", classes)


def test_a_class_that_no_api_has_is_named(classes: str, tmp_path: Path) -> None:
    newer, _, old = classes.partition(":")
    kotlin = tmp_path / "App.kt"
    kotlin.write_text("import android.os.Powr\n")
    done = run_tool(Path(old), Path(newer).parent / "stubs.whl", tmp_path / "newer.jar", kotlin)
    assert done.returncode == 1
    assert done.stderr.strip() == "no such class in API 23 or 36: android/os/Powr"
