"""The command that holds a conversation with a package: chat."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

import tinyqmoe
from exporter.cli.common import check_device_options, one_device, open_verified, residency_mode
from exporter.cli.console import emit, err_console, out_console, progress_bars, stream
from exporter.cli.generation_options import (
    AllowSpecialOption,
    ChatTemplateOption,
    MaxNewTokensOption,
    SeedOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    TopPOption,
)
from exporter.cli.options import (
    BackendOption,
    BundleArgument,
    EntitlementOption,
    JsonOption,
    OneDeviceFileOption,
    OneDeviceOption,
    ResidencyOption,
    ThreadsOption,
    Verification,
    VerifyOption,
)
from exporter.cli.prompt_input import read_line
from exporter.cli.run import STOPPED, expanded_note
from exporter.cli.signals import own_interrupts
from exporter.errors import ContextError, OutOfSpaceError, UsageError

COMMANDS = {
    "/help": "list the commands",
    "/reset": "forget what was said; the system prompt stays",
    "/system": "show the system prompt, or set it: /system TEXT",
    "/stats": "tokens and speed so far",
    "/save": "write the messages as JSON for run --messages: /save FILE",
    "/exit": "end, as Ctrl-D does",
}


def chat(
    bundle_path: BundleArgument,
    system: SystemOption = None,
    max_new_tokens: MaxNewTokensOption = 512,
    stop: StopOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    chat_template: ChatTemplateOption = None,
    allow_special: AllowSpecialOption = False,
    backend: BackendOption = None,
    residency: ResidencyOption = None,
    threads: ThreadsOption = None,
    verify: VerifyOption = Verification.USED,
    device: OneDeviceOption = None,
    device_file: OneDeviceFileOption = None,
    entitlement: EntitlementOption = False,
    json_file: JsonOption = None,
) -> None:
    """Talk with an instruction-tuned model in the terminal.

    Ctrl-C stops an answer, Ctrl-D ends. /help lists commands. Without a terminal each line of stdin
    is a message. On a device the package runs under the phone's limits, exit code 4 if these end
    it.
    """
    profiles = tinyqmoe.find_devices([name for name in (device, device_file) if name])
    check_device_options(profiles, entitlement, None)
    if profiles and threads is not None:
        what = "a chat on a device takes as many threads as the process may use"
        raise UsageError(what, hint="leave --threads or --device away")
    bundle = open_verified(bundle_path) if verify is Verification.ALL else bundle_path
    settings: tinyqmoe.GenerationSettings = {
        "max_new_tokens": max_new_tokens,
        "stop": stop or (),
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "system": system,
        "chat_template": chat_template,
        "allow_special": allow_special,
    }
    package: dict[str, Any] = {
        "backend": backend,
        "residency": residency_mode(residency),
        "threads": threads,
        "device": one_device(profiles) if profiles else None,
        "entitlement": entitlement,
    }
    _talk(bundle, package, settings, json_file)


def _talk(
    bundle: tinyqmoe.Bundle | Path,
    package: dict[str, Any],
    settings: tinyqmoe.GenerationSettings,
    json_file: Path | None,
) -> None:
    with contextlib.ExitStack() as stack:
        with progress_bars() as progress:
            opening = tinyqmoe.hold_package(bundle, progress=progress, **package)
            held = stack.enter_context(opening)
        expanded = 0 if held.device_run else tinyqmoe.expanded_bytes(held.runner)
        talk = Talk(tinyqmoe.converse(held, **settings), str(json_file) == "-", expanded)
        talk.loop()
    run = held.device_run.result() if held.device_run else None

    def show() -> None:
        if run is not None:
            from runtime_ref.reports.run_tables import run_view

            out_console.print(run_view(run, None))

    on_device = {} if run is None else {"device_run": run.to_dict()}
    emit(json_file, lambda: talk.to_dict() | on_device, show)
    if run is not None and not run.fits:
        raise typer.Exit(OutOfSpaceError.exit_code)


@dataclass
class Talk:
    """A conversation with whoever types, line by line.

    `quiet`: nothing goes to stdout. `expanded_bytes`: memory of expanded weights.
    """

    conversation: tinyqmoe.Conversation
    quiet: bool = False
    expanded_bytes: int = 0
    ask: Callable[[], str | None] = field(init=False)

    def __post_init__(self) -> None:
        self.at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.ask = read_line
        if self.at_terminal:
            from exporter.cli.line_editor import line_editor

            self.ask = line_editor(list(COMMANDS))
            note = expanded_note(self.expanded_bytes)
            say(f"/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends{note}")

    def loop(self) -> None:
        """Reads and answers until the end of the input, or /exit."""
        with own_interrupts():
            self._loop()

    def _loop(self) -> None:
        while True:
            try:
                line = self.ask()
            except KeyboardInterrupt:
                if not self.at_terminal:
                    raise
                say("Ctrl-D or /exit ends")
                continue
            if line is None or line.split() == ["/exit"]:
                return
            try:
                if line.startswith("/"):
                    self.obey(*line.split(maxsplit=1))
                elif line.strip():
                    self.answer(line)
            except (ContextError, UsageError) as error:  # of this line: the next may be better
                err_console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)

    def answer(self, text: str) -> None:
        """Shows the answer to a message while it comes. Ctrl-C ends it."""
        n_turns = len(self.conversation.turns)
        pieces = self.conversation.ask(text)
        try:
            for piece in pieces:
                self.show(piece)
        except KeyboardInterrupt:
            pieces.close()
            self.show("\n")
            say("stopped")
        else:
            self.show("\n")
        for turn in self.conversation.turns[n_turns:]:
            if turn.dropped:
                say(f"the context is full: the {turn.dropped} oldest messages are left out")
            if turn.result and turn.result.stopped in ("limit", "context"):
                say(f"ended by {STOPPED[turn.result.stopped]}")

    def show(self, text: str) -> None:
        """Shows a part of an answer."""
        if not self.quiet:
            stream(text)

    def obey(self, command: str, rest: str = "") -> None:
        """Does what a command says. Raises UsageError for one that is unknown or wrong."""
        if command == "/help":
            for name, what in COMMANDS.items():
                say(f"{name:8} {what}")
            say("a message that begins with / needs a space before it")
        elif command == "/reset":
            self.conversation.reset()
            say("what was said is forgotten")
        elif command == "/system":
            self.conversation.system = rest or self.conversation.system
            say(f"system prompt: {self.conversation.system or 'that of the template'}")
        elif command == "/stats":
            err_console.print(self.stats())
        elif command == "/save":
            self.save(rest)
        else:
            raise UsageError(f"there is no command {command}", hint="/help lists them")

    def save(self, name: str) -> None:
        """Writes the messages to a new file as JSON. Raises UsageError."""
        if not name:
            raise UsageError("/save needs a file", hint="give its name: /save FILE")
        text = json.dumps(self.conversation.messages, indent=1, ensure_ascii=False) + "\n"
        try:
            with Path(name).open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            what = f"{name} cannot be written: {error.strerror}"
            raise UsageError(what, hint="give another file") from error
        say(f"{len(self.conversation.messages)} messages are in {name}")

    def stats(self) -> Table:
        """Table of the turns: tokens, those that the cache held, and times in milliseconds."""
        table = Table()
        for name in ("turn", "prompt", "in the cache", "answer", "prefill", "tokens/s"):
            table.add_column(name, justify="right")
        for number, turn in enumerate(self.conversation.turns, 1):
            row = [str(number), "", f"{turn.reused:,}", "stopped", "", ""]
            if (r := turn.result) is not None:
                row = [str(number), f"{len(r.prompt_tokens):,}", f"{turn.reused:,}"]
                row += [f"{len(r.tokens):,}", f"{r.prefill_ms:,.0f} ms"]
                row += [f"{r.decode_tokens_per_second:.1f}"]
            table.add_row(*row)
        return table

    def to_dict(self) -> dict[str, Any]:
        """The messages and the turns as plain values."""
        turns = [asdict(turn) for turn in self.conversation.turns]
        return {"messages": self.conversation.messages, "turns": turns}


def say(text: str) -> None:
    """Tells the user something that is no answer, on stderr."""
    err_console.print(f"[dim]{escape(text)}[/]", highlight=False, soft_wrap=True)
