"""The files of the iOS app that no compiler reads, and what their check refuses."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

IOS = ROOT / "ios_demo"
EDITS = [
    ("project.yml", "path: ../AppModel", "path: ../Model", "the package AppModel is not at"),
    (
        "project.yml",
        "- package: LZWCoreML\n",
        "- package: LZWKit\n",
        "imports ['AppModel', 'LZWCoreML', 'LZWKit'] and",
    ),
    ("project.yml", "Resources/Info.plist", "Info.plist", "Info.plist is not there"),
    ("project.yml", "LZWKit/LZWKitTests", "LZWKit/Tests", "the tests LZWKit/Tests are not there"),
    ("Resources/Info.plist", "</dict>\n</plist>", "", "Info.plist is no property list"),
    ("Resources/Info.plist", "<string>de</string>", "", "CFBundleLocalizations are not"),
    ("Resources/Info.plist", "<string>AccentColor</string>", "<string>Red</string>", "colour Red"),
    ("Resources/TinyQMoE.entitlements", "<true/>", "<false/>", "does not ask for com.apple"),
    (
        "Resources/Localizable.xcstrings",
        '"value": "Senden"',
        '"value": ""',
        "chat.send has no text",
    ),
    ("Resources/Localizable.xcstrings", "%@ Tokens/s", "Tokens/s", "other placeholders in de"),
    ("Resources/Localizable.xcstrings", '"chat.stop"', '"chat.halt"', "chat.stop is used and not"),
    ("Sources/ChatView.swift", '"chat.stop"', '"chat.halt"', "chat.halt is used and not in"),
    (
        "Sources/ConversationList.swift",
        '"common.save"',
        '"common.ok"',
        "common.save is in Localizable",
    ),
    (
        "Resources/Assets.xcassets/AppIcon.appiconset/Contents.json",
        "1024x1024",
        "512x512",
        "has not the size 512x512",
    ),
    (
        "Resources/Assets.xcassets/AccentColor.colorset/Contents.json",
        '"appearances"',
        '"other"',
        "AccentColor.colorset has no dark form",
    ),
    ("Resources/Assets.xcassets/Contents.json", "{", "", "Contents.json: "),
]


def load_checks() -> Any:
    """The module `app_files`, which is a script outside of all packages."""
    spec = importlib.util.spec_from_file_location("app_files", IOS / "tools" / "app_files.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A copy of the app that a test may change, with the packages beside it."""
    shutil.copytree(IOS / "App", tmp_path / "App")
    for package in ("LZWKit", "LZWCoreML", "AppModel"):
        (tmp_path / package).symlink_to(IOS / package)
    return tmp_path / "App"


def test_the_files_of_the_app_are_right() -> None:
    assert load_checks().problems(IOS / "App") == []


@pytest.mark.parametrize(("file", "old", "new", "problem"), EDITS)
def test_what_is_wrong_is_said(app: Path, file: str, old: str, new: str, problem: str) -> None:
    text = (app / file).read_text(encoding="utf-8")
    assert old in text
    (app / file).write_text(text.replace(old, new), encoding="utf-8")
    found = load_checks().problems(app)
    assert any(problem in one for one in found), found


def test_an_icon_that_is_missing_is_said(app: Path) -> None:
    (app / "Resources/Assets.xcassets/AppIcon.appiconset/icon.png").unlink()
    assert load_checks().problems(app) == ["icon.png is no PNG"]


def test_files_are_read_in_one_sitting() -> None:
    files = [
        file
        for part in ("LZWCoreML", "AppModel", "App", "tools")
        for file in (IOS / part).rglob("*.swift")
    ]
    assert len(files) > 30
    long = {
        f.name: n for f in files if (n := len(f.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}
