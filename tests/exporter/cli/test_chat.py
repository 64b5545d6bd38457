"""`chat` through pipes and on a terminal, and what `run` takes besides a prompt."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from exporter.bundle import Bundle
from exporter.cli import app
from tests.support.command_line import one_error, strict_json, tinyqmoe

ASK = {"role": "user", "content": "the cat"}


def piped(text: str | bytes, *arguments: str | Path) -> Any:
    return CliRunner().invoke(app.app, [str(a) for a in arguments], input=text)


def test_each_line_of_a_pipe_is_a_message(bundle: Bundle, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    lines = f"hi\n\n/save {saved}\n/stats\n/system be\n/reset\n yes\n/exit\nnever\n"
    done = piped(lines, "chat", bundle.path, "--max-new-tokens", "4", "--json", tmp_path / "j")
    assert done.exit_code == 0, done.output
    result = strict_json((tmp_path / "j").read_text())
    assert [m["content"] for m in result["messages"][:2]] == ["be", " yes"]
    first = json.loads(saved.read_text())
    assert [m["role"] for m in first] == ["user", "assistant"]
    assert done.stdout == f"{first[1]['content']}\n{result['turns'][0]['answer']}\n"
    assert "in the cache" in done.stderr
    again = piped("", "run", bundle.path, "--messages", saved)
    assert "last message is not a user's" in one_error(again, 2)


def test_a_wrong_line_does_not_end_the_chat(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("kept")
    wrong = f"/dance\n/save\n/save {tmp_path / 'there'}\n/save {tmp_path}/no/where\n{'x ' * 99}\n"
    done = piped(f"{wrong}hi\n/help\n".encode() + b"\xff\n", "chat", bundle.path, "--json", "-")
    assert done.exit_code == 0
    assert len(strict_json(done.stdout)["turns"]) == 1
    for said in ("no command /dance", "/save needs", "cannot be written", "too long", "not UTF-8"):
        assert said in " ".join(done.stderr.split())
    assert (tmp_path / "there").read_text() == "kept"


def test_a_chat_needs_a_template(copied: Bundle) -> None:
    template = copied.path / "chat_template.jinja"
    config = copied.path / "tokenizer_config.json"
    template.unlink(missing_ok=True)
    config.write_text("{}")
    names = {template.name, config.name}
    from exporter import bundle as bundles
    from tests.support.bundles import reseal

    ledger = [row for row in copied.manifest.ledger if row.file not in names]
    reseal(copied, ledger=[*ledger, bundles.LedgerRow(config.name, "settings", 2)])
    assert "no chat template" in one_error(piped("hi\n", "chat", copied.path), 2)


def test_a_chat_under_the_limits_of_a_device(bundle: Bundle) -> None:
    here = piped("hi\nyes\n", "chat", bundle.path, "--max-new-tokens", "5", "--json", "-")
    phone = piped(
        "hi\nyes\n",
        *("chat", bundle.path, "--max-new-tokens", "5", "--json", "-", "--device", "iphone-13"),
    )
    assert phone.exit_code == 0, phone.output
    result = strict_json(phone.stdout)
    assert result["messages"] == strict_json(here.stdout)["messages"]
    report = result["device_run"]["report"]
    assert report["outcome"] == "ok"
    assert report["result"]["calls"] >= 4
    assert report["peak_dirty_bytes"] > 0


def test_a_device_that_is_too_small_ends_the_chat_with_4(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is set below what the package takes: the child is ended while it answers."""
    from dataclasses import replace

    from runtime_ref.device import run as device_runs

    def small(*arguments: Any, **options: Any) -> Any:
        budget = memory_budget(*arguments, **options)
        return replace(budget, dirty_bytes=1 << 16, available_bytes=1 << 16)

    memory_budget = device_runs.memory_budget
    monkeypatch.setattr(device_runs, "memory_budget", small)
    done = piped("hi\n", "chat", bundle.path, "--device", "iphone-13")
    assert done.exit_code == 4, done.output
    assert "ended under the limit of iPhone 13" in done.stderr
    assert "fit BUNDLE --device iphone-13" in done.stderr


def test_run_reads_stdin_and_files(bundle: Bundle, tmp_path: Path) -> None:
    common = ("run", bundle.path, "--max-new-tokens", "4", "--json", "-")
    by_option = strict_json(tinyqmoe(*common, "--prompt", "the cat").stdout)
    for given in ((), ("--prompt", "-")):
        assert (
            strict_json(piped("the cat\n", *common, *given).stdout)["tokens"] == by_option["tokens"]
        )
    file = tmp_path / "messages.json"
    file.write_text(json.dumps([{"role": "system", "content": "be"}, ASK]))
    chat = strict_json(tinyqmoe(*common, "--messages", file).stdout)
    same = tinyqmoe(*common, "--chat", "--system", "be", "--prompt", "the cat")
    assert strict_json(same.stdout)["prompt_tokens"] == chat["prompt_tokens"]
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages[-1].content }}")
    plain = tinyqmoe(*common, "--chat-template", own, "--prompt", "the cat")
    assert len(strict_json(plain.stdout)["prompt_tokens"]) < len(chat["prompt_tokens"])
    stopped = tinyqmoe(*common, "--prompt", "the cat", "--stop", by_option["text"][1:3])
    assert strict_json(stopped.stdout)["stopped"] == "stop"
    assert strict_json(stopped.stdout)["text"] == by_option["text"][:1]


@pytest.mark.parametrize(
    ("text", "options", "problem"),
    [
        (b"", ["--prompt", "a", "--messages", "-"], "two beginnings"),
        (b"{", ["--messages", "-"], "not JSON"),
        (b"{}", ["--messages", "-"], "no list of messages"),
        (b"[]", ["--messages", "nowhere.json"], "no file nowhere.json"),
        (b"\xff", [], "stdin is not UTF-8"),
        (b"", ["--prompt", "a", "--stop", ""], "stop string is empty"),
        (b"", ["--prompt", "a", "--chat-template", "nowhere"], "neither a file nor a name"),
    ],
)
def test_wrong_input_of_a_run_is_2(
    text: bytes, options: list[str], problem: str, bundle: Bundle
) -> None:
    assert problem in one_error(piped(text, "run", bundle.path, *options), 2)


# ---- on a terminal

MAIN = "from exporter.cli.start import main; main()"


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *arguments: str | Path) -> None:
        self.fd, other = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *map(str, arguments)],
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
            preexec_fn=lambda: __import__("fcntl").ioctl(0, 0x540E, 0),  # TIOCSCTTY
        )
        os.close(other)
        self.shown, self.at = "", 0

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Reads until `text` has come since what was waited for last."""
        end = time.monotonic() + seconds
        while (at := self.plain.find(text, self.at)) < 0:
            assert time.monotonic() < end, f"{text!r} did not come: {self.shown!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                part = os.read(self.fd, 4096).decode(errors="replace")
                self.shown += part
                if "\x1b[6n" in part:  # where is the cursor?
                    os.write(self.fd, b"\x1b[1;1R")
        self.at = at + len(text)

    @property
    def plain(self) -> str:
        """What was shown, without control sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.shown)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())


@pytest.fixture
def terminal(bundle: Bundle) -> Iterator[Terminal]:
    there = Terminal("chat", bundle.path, "--max-new-tokens", "3")
    yield there
    there.process.kill()
    there.process.wait()
    os.close(there.fd)


def test_a_chat_on_a_terminal(terminal: Terminal) -> None:
    terminal.wait_for("Ctrl-D ends")
    terminal.wait_for(">")
    terminal.type("hi\r")
    terminal.wait_for("ended by token limit")
    terminal.wait_for(">")
    terminal.type("half a line\x03")  # Ctrl-C
    terminal.wait_for("Ctrl-D or /exit ends")
    terminal.wait_for(">")
    terminal.type("/stats\r")
    terminal.wait_for("in the cache")
    terminal.wait_for(">")
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0
    assert "Traceback" not in terminal.shown


@pytest.mark.parametrize("backend", ["native", "executorch"])
def test_libraries_say_nothing_on_a_terminal(backend: str, bundle: Bundle) -> None:
    """Bars are shown while they load: what they write must not come through beside them."""
    options = ("--prompt", "the cat", "--max-new-tokens", "2", "--backend", backend)
    there = Terminal("run", bundle.path, *options)
    try:
        there.wait_for("on this machine", 120)
    finally:
        there.process.kill()
        there.process.wait()
        os.close(there.fd)
    chatter = r"\w+\.(cpp|cc|py|so|h)\b|Failed|[Ww]arning|version|\b[IWE]\d{4} "
    assert re.findall(chatter, there.plain) == []


def test_ctrl_c_stops_the_answer_and_not_the_program(bundle: Bundle) -> None:
    """The answer is slowed down, so that it is there to be stopped."""
    slow = (
        "import time, runtime_ref.generate as g\nplain = g.KeptPrefix.forward\n"
        "def forward(self, tokens, position):\n"
        "    time.sleep(0.2)\n    return plain(self, tokens, position)\n"
        f"g.KeptPrefix.forward = forward\n{MAIN}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, "chat", str(bundle.path), "--max-new-tokens", "20"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"hi\n")
    process.stdin.flush()
    assert process.stdout.read(1)  # the answer has begun
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    _, err = process.communicate(b"/stats\n/exit\n", timeout=60)
    assert process.returncode == 0, err
    assert b"stopped" in err
    assert b"Traceback" not in err
