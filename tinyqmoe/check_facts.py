"""The facts of a bundle that a check is about: of the bundle itself, or of one that came before."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from exporter.bundle import BACKENDS, NATIVE, Bundle, QuantizationLoss
from exporter.errors import DataError
from tinyqmoe.devices import is_bundle
from tinyqmoe.hub import is_hub_id
from tinyqmoe.packages import ALL, choose_packages, native_packages, open_bundle
from tinyqmoe.settings import names

if TYPE_CHECKING:
    from exporter.bundle import Artifact
    from runtime_ref.gates import Facts

T = TypeVar("T")
_KINDS: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float)}


def facts_of(bundle: Bundle, artifacts: Sequence[Artifact]) -> Facts:
    """The facts of these packages of a bundle, and the loss of its quantization."""
    from runtime_ref.device.prediction import predict
    from runtime_ref.gates import Facts, PackageFacts
    from runtime_ref.residency import Residency

    manifest = bundle.manifest
    packages = {
        a.format: PackageFacts(
            bundle.shipped_bytes(a), predict(manifest, a, Residency()).dirty_bytes
        )
        for a in artifacts
    }
    loss, model = manifest.quantization_loss, manifest.model.name
    return Facts(model, manifest.created, loss, _bits(bundle, artifacts), packages)


def read_baseline(path: str | Path, backends: str | Sequence[str]) -> Facts:
    """The facts of a bundle, or of the JSON of a check, less the packages that nobody asks for.

    `path` may be the id of a bundle on the hub. Raises BundleError, and DataError for a file that
    is no such JSON.
    """
    wanted = names(backends)
    if is_bundle(path) or Path(path).is_dir() or is_hub_id(path):
        bundle = open_bundle(path)
        session = native_packages(bundle.manifest) if NATIVE in wanted else []
        facts = facts_of(bundle, [*choose_packages(bundle.manifest), *session])
    else:
        facts = _read_report(Path(path))
    chosen = {
        name: package
        for name, package in facts.packages.items()
        if ALL in wanted or name in wanted or BACKENDS.get(name) in wanted
    }
    return replace(facts, packages=chosen)


def _bits(bundle: Bundle, artifacts: Sequence[Artifact]) -> str | None:
    """SHA-256 of the exact logits of all prompts; None where no package has them."""
    from runtime_ref.answers import load_reference

    exact = next((a for a in artifacts if a.exact), None)
    if exact is None:
        return None
    digests = (answer.sha256 or b"" for answer in load_reference(bundle, exact))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _read_report(path: Path) -> Facts:
    """The facts in what `tinyqmoe check --json` has written. Raises DataError."""
    from exporter import strict_json

    hint = "give a bundle, or what `tinyqmoe check BUNDLE --json FILE` has written"
    if not path.is_file():
        raise DataError(f"the baseline {path} is not there", hint=hint)
    try:
        return _read_facts(strict_json.parse(path.read_bytes()))
    except ValueError as error:
        raise DataError(f"{path} is not the report of a check: {error}", hint=hint) from error


def _read_facts(document: Any) -> Facts:
    """The facts of a report. Raises ValueError for what is not there or of a wrong type."""
    from runtime_ref.gates import Facts, PackageFacts

    raw = document.get("facts") if isinstance(document, dict) else None
    if not isinstance(raw, dict):
        raise ValueError("it has no facts")
    packages, bits = raw.get("packages"), raw.get("bits")
    if not isinstance(packages, dict) or not isinstance(bits, str | None):
        raise ValueError("facts.packages or facts.bits is missing or of a wrong type")
    loss = _read(QuantizationLoss, raw.get("loss"), "facts.loss")
    if loss.perplexity_original <= 0:
        raise ValueError("facts.loss.perplexity_original must be positive")
    texts = [raw.get(key) for key in ("model", "created")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("facts.model or facts.created is missing or of a wrong type")
    read = {n: _read(PackageFacts, p, f"facts.packages.{n}") for n, p in packages.items()}
    return Facts(str(texts[0]), str(texts[1]), loss, bits, read)


def _read(kind: type[T], raw: Any, where: str) -> T:
    """A dataclass of texts and numbers from parsed JSON. Raises ValueError."""
    types = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(raw, dict) or set(raw) != set(types):
        raise ValueError(f"{where} must have {', '.join(types)}")
    wrong = [
        name
        for name, value in raw.items()
        if isinstance(value, bool) or not isinstance(value, _KINDS[types[name]])
    ]
    if wrong:
        raise ValueError(f"{where} has another type in {', '.join(wrong)}")
    return kind(**raw)
