"""The files of the Android app that no compiler looks at: resources, manifest, Gradle, sizes."""

from __future__ import annotations

import re
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DEMO = ROOT / "android_demo"
MAIN = DEMO / "app" / "src" / "main"
RES = MAIN / "res"
KOTLIN = sorted((DEMO / "app" / "src").rglob("*.kt"))
LAYOUTS = sorted(RES.glob("layout*/*.xml"))
A = "{http://schemas.android.com/apk/res/android}"
SHOWN = ("text", "hint", "title", "label", "contentDescription")


def elements(file: Path) -> list[ET.Element]:
    return list(ET.parse(file).iter())


def strings(folder: str) -> dict[str, str]:
    """Texts by name, plurals as name/quantity."""
    root = ET.parse(RES / folder / "strings.xml").getroot()
    found = {s.attrib["name"]: s.text or "" for s in root.findall("string")}
    for plural in root.findall("plurals"):
        for item in plural.findall("item"):
            found[f"{plural.attrib['name']}/{item.attrib['quantity']}"] = item.text or ""
    return found


def untranslated() -> set[str]:
    root = ET.parse(RES / "values" / "strings.xml").getroot()
    return {s.attrib["name"] for s in root if s.attrib.get("translatable") == "false"}


def placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"%\d\$[.\d]*[a-z]", text))


def test_every_string_is_translated_with_its_placeholders() -> None:
    english, german = strings("values"), strings("values-de")
    assert english.keys() - untranslated() == german.keys()
    assert len(german) > 70
    singular = {name for name in german if name.endswith("/one")}
    differ = [n for n in german if placeholders(english[n]) != placeholders(german[n])]
    assert [n for n in differ if n not in singular] == []
    same = {n for n in german if english[n] == german[n] and len(english[n].split()) > 2}
    assert same == set()


def test_every_string_is_used_and_every_use_is_there() -> None:
    sources = [*MAIN.rglob("*.kt"), *RES.rglob("*.xml"), MAIN / "AndroidManifest.xml"]
    text = "\n".join(f.read_text("utf-8") for f in sources)
    used = set(re.findall(r"(?:R\.(?:string|plurals)\.|@string/)(\w+)", text))
    assert used == {name.partition("/")[0] for name in strings("values")}


@pytest.mark.parametrize("file", LAYOUTS, ids=lambda f: f.stem)
def test_layouts_can_be_heard_and_touched(file: Path) -> None:
    labelled = {
        e.attrib[f"{A}labelFor"].split("/")[1] for e in elements(file) if f"{A}labelFor" in e.attrib
    }
    for element in elements(file):
        name = element.attrib.get(f"{A}id", element.tag)
        if element.tag in ("ImageButton", "ImageView"):
            assert f"{A}contentDescription" in element.attrib, name
            for side in ("layout_width", "layout_height"):
                assert int(element.attrib[A + side].removesuffix("dp")) >= 48, name
        if element.tag == "EditText":
            assert f"{A}hint" in element.attrib or name.split("/")[1] in labelled, name


def test_no_text_is_written_into_layouts_menus_or_the_manifest() -> None:
    files = [*LAYOUTS, *RES.glob("menu/*.xml"), MAIN / "AndroidManifest.xml"]
    assert len(files) > 12
    for file in files:
        for element in elements(file):
            for name in SHOWN:
                text = element.attrib.get(A + name, "@string/")
                assert text.startswith("@string/"), f"{file.name}: {name}={text}"


def test_no_text_is_written_into_the_views() -> None:
    for file in (f for f in MAIN.rglob("*.kt") if "presenter" not in f.parts):
        shown = re.findall(
            r"\b(?:text|title|subtitle|hint|contentDescription|error) = \"[^\"]*[a-zA-Z]{3}",
            file.read_text("utf-8"),
        )
        assert shown == [], file.name


def test_the_night_has_a_color_for_every_color() -> None:
    def names(folder: str) -> set[str]:
        return {e.attrib["name"] for e in elements(RES / folder / "colors.xml") if e.tag == "color"}

    assert names("values") - names("values-night") == {"icon_background"}
    assert names("values-night") < names("values")


def manifest() -> ET.Element:
    return ET.parse(MAIN / "AndroidManifest.xml").getroot()


def classes_of(kind: str) -> set[str]:
    pattern = rf"^class (\w+)[^{{]*: {kind}\("
    return {n for f in MAIN.rglob("*.kt") for n in re.findall(pattern, f.read_text("utf-8"), re.M)}


def declared(tag: str) -> set[str]:
    return {e.attrib[f"{A}name"].removeprefix(".") for e in manifest().iter(tag)}


def test_the_manifest_names_the_classes_that_there_are() -> None:
    assert declared("activity") == classes_of("Screen")
    assert declared("service") == classes_of("Service")
    (application,) = manifest().iter("application")
    assert application.attrib[f"{A}name"] == "." + next(iter(classes_of("Application")))
    assert f"{A}largeHeap" not in application.attrib
    exported = [e for e in application if e.attrib[f"{A}exported"] == "true"]
    assert [e.attrib[f"{A}name"] for e in exported] == [".ChatActivity"]


def test_downloads_run_in_a_service_of_their_type() -> None:
    (service,) = manifest().iter("service")
    assert service.attrib[f"{A}foregroundServiceType"] == "dataSync"
    asked = {e.attrib[f"{A}name"] for e in manifest().iter("uses-permission")}
    needed = {
        "INTERNET",
        "FOREGROUND_SERVICE",
        "FOREGROUND_SERVICE_DATA_SYNC",
        "POST_NOTIFICATIONS",
    }
    assert asked == {f"android.permission.{name}" for name in needed}


def test_models_are_not_backed_up() -> None:
    kept = {"conversations/", "settings.json"}
    old = elements(RES / "xml" / "backup_rules.xml")
    new = ET.parse(RES / "xml" / "data_extraction_rules.xml").getroot()
    for group in (old, list(new.find("cloud-backup")), list(new.find("device-transfer"))):  # type: ignore[arg-type]
        included = {e.attrib["path"] for e in group if e.tag == "include"}
        assert included == kept
    graph = (MAIN / "kotlin/com/tinyqmoe/app/AppGraph.kt").read_text("utf-8")
    assert 'File(context.noBackupFilesDir, "models")' in graph
    for name in kept:
        assert f'File(context.filesDir, "{name.rstrip("/")}")' in graph


def test_modules_and_the_version_catalog_fit() -> None:
    settings = (DEMO / "settings.gradle.kts").read_text("utf-8")
    modules = re.findall(r'":(\w+)"', settings)
    assert modules == ["app", "core", "native"]
    files = [DEMO / "build.gradle.kts", *(DEMO / m / "build.gradle.kts" for m in modules)]
    text = "\n".join(f.read_text("utf-8") for f in files)
    catalog = tomllib.loads((DEMO / "gradle" / "libs.versions.toml").read_text("utf-8"))
    used = set(re.findall(r"libs\.((?:[a-z]+\.)*[a-zA-Z]+?)(?:\.get\(\)|\))", text))
    known = {f"versions.{name}" for name in catalog["versions"] if name.endswith(("Sdk", "ndk"))}
    known |= {name.replace("-", ".") for name in catalog["libraries"]}
    known |= {"plugins." + name.replace("-", ".") for name in catalog["plugins"]}
    assert used == known
    for entry in [*catalog["libraries"].values(), *catalog["plugins"].values()]:
        assert entry["version"]["ref"] in catalog["versions"]
    assert catalog["versions"]["targetSdk"] == catalog["versions"]["compileSdk"] == "36"
    assert set(re.findall(r'project\(":(\w+)"\)', text)) == {"core", "native"}
    assert text.count('abiFilters += listOf("arm64-v8a", "x86_64")') == 2


def test_presenters_know_no_android() -> None:
    for file in [
        *(MAIN / "kotlin/com/tinyqmoe/app/presenter").glob("*.kt"),
        *(DEMO / "core").rglob("*.kt"),
    ]:
        assert re.findall(r"^import android", file.read_text("utf-8"), re.M) == [], file.name


def functions(file: Path) -> list[tuple[int, str]]:
    """(lines, name) of each function of a Kotlin file: to the next line as little indented."""
    lines = file.read_text("utf-8").splitlines()
    found = []
    for i, line in enumerate(lines):
        match = re.match(r"( *)(?:[a-z]+ )*fun [^(]*?([\w`][^(]*)\(", line)
        if match is None:
            continue
        indent = len(match[1])
        end = i + 1
        while end < len(lines) and (
            not lines[end] or len(lines[end]) - len(lines[end].lstrip()) > indent
        ):
            end += 1
        closes = end < len(lines) and lines[end].strip() in ("}", ") {", ")")
        found.append((end - i + closes, f"{file.name}:{match[2]}"))
    return found


def test_kotlin_is_read_in_one_sitting() -> None:
    assert len(KOTLIN) > 40
    assert [f.name for f in KOTLIN if len(f.read_text("utf-8").splitlines()) > 400] == []
    sizes = sorted(f for file in KOTLIN for f in functions(file))
    assert len(sizes) > 200
    assert [f for f in sizes if f[0] > 60] == []
    assert sizes[int(0.9 * len(sizes))][0] <= 35
    wide = [
        f"{f.name}:{i}"
        for f in KOTLIN
        for i, line in enumerate(f.read_text("utf-8").splitlines(), 1)
        if len(line) > 130
    ]
    assert wide == []
