"""Evaluations and comparisons as tables on a terminal, at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from exporter.cli.bundle_tables import bytes_text
from exporter.evaluation.compare import Compared, Comparison
from exporter.evaluation.evaluate import Evaluation, TaskResult, TextResult
from exporter.evaluation.multiple_choice import Accuracy
from exporter.evaluation.statistics import Estimate

WIDTH = 80
Line = tuple[str, str, str, str]
"""A metric, its value, its interval, and the value of the original."""


def evaluation_view(found: Evaluation) -> RenderableType:
    """View of all results of a model, with a table for each task and for the text."""
    model = found.model
    parts: list[RenderableType] = [
        f"{escape(model.name)}, {bytes_text(model.weight_bytes)} of weights"
        + (f", against {escape(found.original.name)}" if found.original else "")
    ]
    parts += [_table(_task_title(task), _task_lines(task)) for task in found.tasks]
    if found.text is not None:
        parts.append(_table(_text_title(found.text), _text_lines(found.text)))
    resumed = f", {found.n_resumed} results from the journal" if found.n_resumed else ""
    parts.append(f"{found.seconds:.0f} s{resumed}")
    return Group(*parts)


def _table(title: str, lines: Iterator[Line]) -> Table:
    table = Table(title=escape(title), title_justify="left", width=WIDTH)
    table.add_column("metric", ratio=1, overflow="fold")
    for name in ("value", "95 % interval", "original"):
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*line)
    return table


def _task_title(task: TaskResult) -> str:
    how = [f"{task.total.n} questions", f"{task.n_shots} shots"]
    how += ["chat template"] if task.chat else []
    how += [f"{task.n_cut} cut on the left"] if task.n_cut else []
    return f"{task.task}: {', '.join(how)}"


def _task_lines(task: TaskResult) -> Iterator[Line]:
    yield from _accuracy_lines("", task.total, task.original)
    for name, subject in task.subjects.items():
        yield from _accuracy_lines(f"{name} ({subject.n}) ", subject, None)
    if task.flips:
        what = f"flips: {task.flips.lost} lost, {task.flips.gained} gained"
        yield _line(what, task.flips.flips, None, percent=True)


def _accuracy_lines(name: str, found: Accuracy, original: Accuracy | None) -> Iterator[Line]:
    yield _line(f"{name}acc", found.acc, original.acc if original else None, percent=True)
    if found.acc_norm:
        norm = original.acc_norm if original else None
        yield _line(f"{name}acc_norm", found.acc_norm, norm, percent=True)


def _text_title(text: TextResult) -> str:
    return f"{text.file}: {text.n_windows} windows of {text.window}, {text.n_tokens:,} tokens"


def _text_lines(text: TextResult) -> Iterator[Line]:
    score, original = text.score, text.original
    yield _line("perplexity", score.perplexity, original.perplexity if original else None)
    by_word = original.word_perplexity if original else None
    yield _line("perplexity of a word", score.word_perplexity, by_word)
    if d := score.divergence:
        yield _line("KL in nats, mean", d.kl_mean, None)
        for name, value in (("median", d.kl_median), ("99 %", d.kl_99), ("99.9 %", d.kl_999)):
            yield f"KL, {name}", _digits(value), "", ""
        yield _line("same best token", d.top1, None, percent=True)


def _line(what: str, of: Estimate, original: Estimate | None, *, percent: bool = False) -> Line:
    def text(value: float) -> str:
        return f"{100 * value:.1f}" if percent else _digits(value)

    ends = "" if of.low is None or of.high is None else f"{text(of.low)} to {text(of.high)}"
    unit = ", %" if percent else ""
    return what + unit, text(of.value), ends, "" if original is None else text(original.value)


def _digits(value: float) -> str:
    """A number with four digits that count, without an exponent while it is readable."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def comparison_table(found: Comparison) -> Table:
    """Table with a line for each model, from the largest to the smallest."""
    title = (
        f"Against {found.original.model.name} on {found.file}: "
        f"{found.n_windows} windows of {found.window}, {found.n_tokens:,} tokens"
    )
    table = Table(title=escape(title), title_justify="left", width=WIDTH)
    table.caption, table.caption_justify = "KL in nats, with its standard error.", "left"
    table.add_column("model", ratio=1, overflow="fold")
    for name in ("weights", "KL", "99 %", "perplexity", "top-1"):
        table.add_column(name, justify="right")
    by_size = sorted(found.others, key=lambda c: c.model.weight_bytes, reverse=True)
    for compared in (found.original, *by_size):
        table.add_row(*_compared_cells(compared))
    return table


def _compared_cells(compared: Compared) -> tuple[str, ...]:
    model, score, d = compared.model, compared.score, compared.score.divergence
    spread = "" if d is None or d.kl_mean.stderr is None else f" ± {d.kl_mean.stderr:.2g}"
    return (
        escape(model.name),
        bytes_text(model.weight_bytes),
        "" if d is None else f"{_digits(d.kl_mean.value)}{spread}",
        "" if d is None else _digits(d.kl_99),
        f"{score.perplexity.value:.2f}",
        "" if d is None else f"{100 * d.top1.value:.1f} %",
    )
