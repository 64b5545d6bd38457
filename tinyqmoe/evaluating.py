"""Evaluating models: perplexity, divergence from the original, and multiple-choice tasks."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from exporter.bundle import Bundle
from exporter.errors import UsageError
from tinyqmoe.devices import is_bundle
from tinyqmoe.hub import bundle_or_model, known_name
from tinyqmoe.packages import PackageInUse, no_progress, open_bundle
from tinyqmoe.settings import names

if TYPE_CHECKING:
    from exporter.evaluation.compare import Comparison
    from exporter.evaluation.evaluate import Evaluation
    from exporter.evaluation.journal import Journal
    from exporter.evaluation.language_model import LanguageModel, ModelFacts
    from exporter.progress import Progress

REFERENCE = "reference"  # the backend that is the quantized model in PyTorch
Model = Bundle | str | Path


class EvaluationSettings(TypedDict, total=False):
    """The settings of an evaluation: what a model is evaluated on.

    tasks: names of multiple-choice tasks, "arc_easy", "arc_challenge", "hellaswag" or "mmlu". data:
    folder with their files. text: file for perplexity and KL. n_shots: examples before each
    question. chat: whether questions go through the chat template. chat_template: another one by
    name or file. window: tokens of the text that are scored in one piece. limit: number of
    questions of each task and subject, and of windows.
    """

    tasks: Sequence[str]
    data: str | Path | None
    text: str | Path | None
    n_shots: int | None
    chat: bool
    chat_template: str | None
    window: int | None
    limit: int | None


@dataclass(frozen=True)
class OpenedModel:
    """A model that is open. texts: the folder with its tokenizer."""

    model: LanguageModel
    texts: Path


def evaluate(
    model_or_bundle: Model,
    *,
    against: Model | None = None,
    backend: str | None = None,
    threads: int | None = None,
    journal: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **settings: Unpack[EvaluationSettings],
) -> Evaluation:
    """Results of a model or a package on tasks and a text, with confidence intervals.

    `against` is the original: KL, top-1 agreement and flips are measured against it. A checkpoint
    is evaluated in float32; `backend` chooses the package of a bundle as for `open_runner`, or is
    "reference": the quantized model in PyTorch. Results of finished items go to the file `journal`,
    from which `resume` goes on. Raises TinyQMoEError.
    """
    from exporter.evaluation.evaluate import EvaluationConfig, Evaluator
    from exporter.evaluation.text_encoder import TextEncoder

    config, progress = EvaluationConfig(**_typed(settings)), progress or no_progress
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(open_model(model_or_bundle, backend, threads, progress))
        encoder = TextEncoder(ours.texts, ours.model.facts.vocab_size)
        original = None
        if against is not None:
            theirs = stack.enter_context(open_model(against, None, None, progress))
            encoder.check_takes(theirs.model.facts, theirs.texts)
            original = theirs.model
        kept = stack.enter_context(_journal(journal, resume))
        return Evaluator(encoder, config, kept, progress).evaluate(ours.model, original)


def compare(
    models: Sequence[Model],
    *,
    against: Model | None = None,
    text: str | Path,
    backend: str | None = None,
    window: int | None = None,
    limit: int | None = None,
    journal: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Perplexity of models on a text and their divergence from the original, with their sizes.

    The original is `against`, or the first of `models`; its tokenizer is that of all. The options
    are as for `evaluate`; `backend` is that of all bundles. Raises TinyQMoEError.
    """
    from exporter.evaluation import compare as comparing
    from exporter.evaluation.evaluate import EvaluationConfig, Evaluator
    from exporter.evaluation.text_encoder import TextEncoder

    given = list(map(bundle_or_model, [*([] if against is None else [against]), *models]))
    if len(given) < 2:
        what = "a comparison takes the original and at least one other model"
        raise UsageError(what, hint="give two models, or one and --against ORIGINAL")
    settings: EvaluationSettings = {"text": text, "window": window, "limit": limit}
    config, progress = EvaluationConfig(**_typed(settings)), progress or no_progress
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(open_model(m, backend if is_bundle(m) else None, None, progress))
            for m in given
        ]
        encoder = TextEncoder(opened[0].texts, opened[0].model.facts.vocab_size)
        for other in opened[1:]:
            encoder.check_takes(other.model.facts, other.texts)
        kept = stack.enter_context(_journal(journal, resume))
        evaluator = Evaluator(encoder, config, kept, progress)
        return comparing.compare(opened[0].model, [o.model for o in opened[1:]], evaluator)


def _typed(settings: EvaluationSettings) -> dict[str, Any]:
    """The settings with paths and tuples as the configuration has them."""
    given = (("data", settings.get("data")), ("text", settings.get("text")))
    paths = {name: Path(path) for name, path in given if path is not None}
    return {**settings, "tasks": names(settings.get("tasks", ())), **paths}


@contextlib.contextmanager
def _journal(path: str | Path | None, resume: bool) -> Iterator[Journal]:
    from exporter.evaluation.journal import Journal

    if resume and path is None:
        what = "there is no journal to go on from"
        raise UsageError(what, hint="give --json FILE: the journal lies beside it")
    file = None if path is None else Path(path)
    with contextlib.closing(Journal(file, resume=resume)) as journal:
        yield journal


@contextlib.contextmanager
def open_model(
    model: Model,
    backend: str | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Iterator[OpenedModel]:
    """A bundle or a checkpoint as a model that gives logits. Raises TinyQMoEError."""
    model = bundle_or_model(model)
    if not is_bundle(model):
        if backend is not None or threads is not None:
            what = "a checkpoint has no packages: it is evaluated in PyTorch, in float32"
            raise UsageError(what, hint="leave --backend and --threads away, or give a bundle")
        with tempfile.TemporaryDirectory(prefix="tinyqmoe-") as texts:
            yield OpenedModel(_checkpoint(model, Path(texts), progress), Path(texts))
    elif backend == REFERENCE:
        if threads is not None:
            what = "the quantized model in PyTorch takes no number of threads"
            raise UsageError(what, hint="leave --threads away")
        from exporter.evaluation.quantized import quantized

        bundle = open_bundle(model)
        yield OpenedModel(quantized(bundle, _bundle_facts(bundle, REFERENCE)), bundle.path)
    else:
        from exporter.evaluation.language_model import PackageModel

        chosen = PackageInUse(model, backend)
        runner = chosen.open(None, threads, progress)
        facts = _bundle_facts(chosen.bundle, chosen.artifact.format)
        yield OpenedModel(PackageModel(runner, facts), chosen.bundle.path)


def _checkpoint(model: Model, texts: Path, progress: Progress) -> LanguageModel:
    """The model of a checkpoint, whose tokenizer is written to `texts`."""
    from exporter.checkpoint.checkpoint import Checkpoint
    from exporter.evaluation.journal import key_of
    from exporter.evaluation.language_model import ModelFacts
    from exporter.evaluation.network import original

    assert not isinstance(model, Bundle)  # the caller has seen to that
    checkpoint = Checkpoint.open(model, progress=progress)
    checkpoint.write_texts(texts)
    files = sorted({file for entry in checkpoint.entries.values() for file in entry.files})
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    config = checkpoint.config
    facts = ModelFacts(
        checkpoint.path.resolve().name,
        config.max_position_embeddings,
        config.vocab_size,
        checkpoint.source_bytes,
        key_of(checkpoint.config_dict, stats),
    )
    return original(checkpoint, facts)


def _bundle_facts(bundle: Bundle, backend: str) -> ModelFacts:
    """Facts of a bundle as a backend runs it: its weights are the coded levels and their scales."""
    from exporter.bundle import MANIFEST, sha256
    from exporter.evaluation.journal import key_of
    from exporter.evaluation.language_model import ModelFacts

    manifest = bundle.manifest
    return ModelFacts(
        f"{known_name(bundle)} ({backend})",
        manifest.interface.context,
        manifest.interface.vocab_size,
        sum(t.blob_bytes + t.scales_bytes for t in manifest.tensors),
        key_of(sha256(bundle.path / MANIFEST), backend),
    )
