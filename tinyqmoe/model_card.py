"""The model card of a bundle: the README.md of its repository on the hub."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from exporter.bundle import BACKENDS, SIGNATURE

if TYPE_CHECKING:
    from exporter.bundle import Bundle


def model_card(bundle: Bundle, repo: str, licence: str) -> str:
    """The card in Markdown with its front matter; all of it is what the manifest says.

    Whether packages fit phones is predicted from it too.
    """
    from exporter.bundle.sealing import digest_of
    from runtime_ref.device.prediction import predict
    from runtime_ref.reports.files import environment, xml_text
    from runtime_ref.residency import Residency
    from tinyqmoe.devices import find_devices, fit

    manifest = bundle.manifest
    packages = []
    for a in manifest.artifacts:
        dirty = predict(manifest, a, Residency()).dirty_bytes
        packages.append((a.format, a.backend, bundle.shipped_bytes(a), dirty))
    fits: dict[str, dict[str, str]] = {}
    for verdict in fit(bundle):
        told = "fits" if verdict.fits else "does not fit"
        fits.setdefault(verdict.device, {})[verdict.format] = told
    titles = {profile.name: profile.title for profile in find_devices()}
    formats = [a.format for a in manifest.artifacts]
    content = {
        "front": _front_matter(bundle, licence),
        "manifest": manifest,
        "settings": [(k, v) for k, v in manifest.quantization.items() if v not in (None, [])],
        "packages": packages,
        "formats": formats,
        "fits": [(titles[d], [of.get(f, "-") for f in formats]) for d, of in fits.items()],
        "platforms": {BACKENDS[f] for f in formats},
        "repo": repo,
        "licence": licence,
        "digest": digest_of(manifest.to_json()),
        "signed": (bundle.path / SIGNATURE).is_file(),
    }
    text = environment(autoescape=False).get_template("model_card.md").render(content)
    return xml_text(text)


def _front_matter(bundle: Bundle, licence: str) -> list[tuple[str, str]]:
    """Keys of the front matter with their values in JSON, which YAML reads."""
    origin = bundle.manifest.model.origin
    backends = list(dict.fromkeys(a.backend for a in bundle.manifest.artifacts))
    found = {"license": licence, "base_model": origin.repo_id, "library_name": "tiny-qmoe"}
    kept = {key: value for key, value in found.items() if value is not None}
    tags = {"tags": ["tiny-qmoe", *backends]}
    return [(key, json.dumps(value)) for key, value in (kept | tags).items()]
