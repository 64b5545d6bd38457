"""Checks of the app's files that no compiler here reads: project, property lists, assets, strings.

`python app_files.py [FOLDER]` says everything that is wrong, and ends with 1 if anything is.
"""

from __future__ import annotations

import json
import plistlib
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import yaml

APP = Path(__file__).resolve().parent.parent / "App"
LANGUAGES = {"en", "de"}
# Literals with dots that are neither keys nor names of symbols.
OTHER_NAMES = {"com.tinyqmoe.demo.download"}
LITERAL = re.compile(r'"([a-z]+(?:\.[a-zA-Z]+)+(?: [^"]*)?)"')
SYMBOL = re.compile(r'system(?:Image|Name): *(?:[\w.]+ \? *)?"[^"]*"(?: : "[^"]*")?')
PLACEHOLDER = re.compile(r"%(?:\d+\$)?@")
PLIST_KEYS = {"CFBundleIdentifier", "CFBundleExecutable", "UILaunchScreen", "CFBundlePackageType"}
ENTITLEMENT = "com.apple.developer.kernel.increased-memory-limit"


def problems(app: Path) -> list[str]:
    """Everything that is wrong with an app's files."""
    found = [*project_problems(app), *plist_problems(app), *asset_problems(app)]
    return [*found, *catalog_problems(app), *key_problems(app)]


def project_problems(app: Path) -> Iterator[str]:
    """Files, packages and test targets that project.yml names must be there."""
    project = yaml.safe_load((app / "project.yml").read_text(encoding="utf-8"))
    packages = {name: app / package["path"] for name, package in project["packages"].items()}
    for name, path in packages.items():
        manifest = path / "Package.swift"
        if not manifest.is_file():
            yield f"project.yml: the package {name} is not at {path.name}"
        elif f'.library(name: "{name}"' not in manifest.read_text(encoding="utf-8"):
            yield f"project.yml: {path.name} has no library {name}"
    for name, target in project["targets"].items():
        yield from target_problems(app, name, target, packages)


def target_problems(
    app: Path, name: str, target: dict[str, Any], packages: dict[str, Path]
) -> Iterator[str]:
    settings = target["settings"]["base"]
    named = [*target["sources"], settings["INFOPLIST_FILE"], settings["CODE_SIGN_ENTITLEMENTS"]]
    yield from (f"{name}: {path} is not there" for path in named if not (app / path).exists())
    depends = {dependency["package"] for dependency in target["dependencies"]}
    imported = {
        module
        for file in (app / "Sources").glob("*.swift")
        for module in re.findall(r"^import (\w+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    ours = imported & packages.keys()
    if ours != depends:
        yield f"{name} imports {sorted(ours)} and depends on {sorted(depends)}"
    for test in target["scheme"]["testTargets"]:
        package, _, tests = test["package"].partition("/")
        if not (packages.get(package, app) / "Tests" / tests).is_dir():
            yield f"{name}: the tests {test['package']} are not there"


def plist_problems(app: Path) -> Iterator[str]:
    resources = app / "Resources"
    read = {}
    for file in ("Info.plist", "TinyQMoE.entitlements", "PrivacyInfo.xcprivacy"):
        try:
            read[file] = plistlib.loads((resources / file).read_bytes())
        except (OSError, ValueError, plistlib.InvalidFileException, ExpatError) as error:
            yield f"{file} is no property list: {error}"
    info = read.get("Info.plist", {})
    yield from (f"Info.plist has no {key}" for key in sorted(PLIST_KEYS - info.keys()))
    if set(info.get("CFBundleLocalizations", [])) != LANGUAGES:
        yield f"Info.plist: CFBundleLocalizations are not {sorted(LANGUAGES)}"
    if read.get("TinyQMoE.entitlements", {}).get(ENTITLEMENT) is not True:
        yield f"TinyQMoE.entitlements does not ask for {ENTITLEMENT}"
    colors = {path.stem for path in (resources / "Assets.xcassets").glob("*.colorset")}
    if (color := info.get("UILaunchScreen", {}).get("UIColorName")) not in colors:
        yield f"Info.plist: the launch screen's colour {color} is no asset"


def asset_problems(app: Path) -> Iterator[str]:
    """Every set has its JSON, every file in it is there, and colours have a dark form."""
    catalog = app / "Resources" / "Assets.xcassets"
    for folder in [catalog, *(path for path in catalog.iterdir() if path.is_dir())]:
        try:
            contents = json.loads((folder / "Contents.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            yield f"{folder.name}/Contents.json: {error}"
            continue
        for image in contents.get("images", []):
            yield from icon_problems(folder / image["filename"], image["size"])
        if folder.suffix == ".colorset" and not any(
            "appearances" in color for color in contents["colors"]
        ):
            yield f"{folder.name} has no dark form"


def icon_problems(file: Path, size: str) -> Iterator[str]:
    data = file.read_bytes() if file.is_file() else b""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        yield f"{file.name} is no PNG"
    elif f"{'x'.join(str(n) for n in struct.unpack('>II', data[16:24]))}" != size:
        yield f"{file.name} has not the size {size}"


def catalog_problems(app: Path) -> Iterator[str]:
    """Every key has a text in every language, with the placeholders of the key."""
    for name in ("Localizable", "InfoPlist"):
        for key, entry in read_catalog(app, name).items():
            texts = {
                language: unit["stringUnit"]["value"]
                for language, unit in entry["localizations"].items()
            }
            if missing := LANGUAGES - {language for language, text in texts.items() if text}:
                yield f"{name}: {key} has no text in {', '.join(sorted(missing))}"
            for language, text in texts.items():
                if len(PLACEHOLDER.findall(text)) != len(PLACEHOLDER.findall(key)):
                    yield f"{name}: {key} has other placeholders in {language}"


def key_problems(app: Path) -> Iterator[str]:
    """The keys that the sources use are those of the catalog."""
    used = {
        key for file in sorted((app / "Sources").glob("*.swift")) for key in keys_of(file)
    } - OTHER_NAMES
    known = set(read_catalog(app, "Localizable"))
    yield from (f"{key} is used and not in Localizable" for key in sorted(used - known))
    yield from (f"{key} is in Localizable and not used" for key in sorted(known - used))


def read_catalog(app: Path, name: str) -> dict[str, Any]:
    text = (app / "Resources" / f"{name}.xcstrings").read_text(encoding="utf-8")
    catalog = json.loads(text)
    if catalog["sourceLanguage"] != "en" or catalog["version"] != "1.0":
        raise ValueError(f"{name}.xcstrings is of another version or language")
    strings: dict[str, Any] = catalog["strings"]
    return strings


def keys_of(file: Path) -> Iterator[str]:
    """Keys of strings in a source: literals with dots, but for names of symbols."""
    for line in file.read_text(encoding="utf-8").splitlines():
        yield from LITERAL.findall(SYMBOL.sub("", plain(line)))


def plain(line: str) -> str:
    """A line with `%@` in place of what is interpolated into its literals."""
    text, at = "", 0
    while at < len(line):
        if line.startswith("\\(", at):
            at, depth = at + 2, 1
            while depth and at < len(line):
                depth += {"(": 1, ")": -1}.get(line[at], 0)
                at += 1
            text += "%@"
        else:
            text, at = text + line[at], at + 1
    return text


def main() -> int:
    app = Path(sys.argv[1]) if len(sys.argv) > 1 else APP
    found = problems(app)
    for problem in found:
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
