"""The quantization of a model: which scheme each of its matrices takes, with which settings."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

from exporter.bundle import EMBEDDING, HEAD
from exporter.errors import UsageError
from exporter.quant import load, supported
from exporter.quant import rules as plans
from exporter.quant.rules import AUTO, DEFAULT, Rule
from exporter.quant.tensor import JsonConfig, SchemeConfig, is_fitted

MIXED = "mixed"  # by the rules of a plan
# Those that a scheme's `Config` may have.
SETTINGS = ("group_size", "sparsity", "bits_per_weight", "recover")


@dataclass(frozen=True)
class QuantConfig(JsonConfig):
    """The quantization of a model: its schemes and their settings.

    Vectors (norm weights and biases) always stay float32.

    A scheme of AUTO takes the levels that a ternary checkpoint has (quant/plan.py), and DEFAULT
    where there are none. The settings, of SETTINGS, are those of `scheme`. The embedding and the
    head take the scheme `embedding`: the same settings if that is the same scheme, else one scale a
    row and that scheme's defaults. With a scheme of MIXED the `rules` say it all.
    """

    scheme: str = AUTO
    group_size: int | None = None
    sparsity: float | None = None
    embedding: str = AUTO
    bits_per_weight: float | None = None
    recover: int | None = None
    rules: tuple[Rule, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"rules": [rule.to_dict() for rule in self.rules]}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        rules = tuple(map(Rule.from_dict, raw.get("rules", ())))
        return super().from_dict(raw | {"rules": rules})

    def problems(self) -> list[str]:
        if self.scheme == MIXED:
            return self._plan_problems()
        if self.rules:
            return [f"a plan is for scheme {MIXED}, the scheme is {self.scheme}"]
        names = {"scheme": self.scheme, "embedding": self.embedding}
        problems = [
            f"{field} must be one of {', '.join([AUTO, *supported(), MIXED])}; got {value!r}"
            for field, value in names.items()
            if value not in (AUTO, *supported())
        ]
        given = {name: value for name in SETTINGS if (value := getattr(self, name)) is not None}
        scheme = _or_default(self.scheme)
        own = settings_of(scheme) if scheme in supported() else []
        for name in [name for name in given if name not in own]:
            having = schemes_with(name)
            if scheme in supported():
                problems.append(
                    f"{name} is an option of scheme {' or '.join(having)}, the scheme is {scheme}"
                )
            problems += _value_problems(having[0], {name: given[name]})
        together = {name: given[name] for name in given if name in own}
        return problems + (_value_problems(scheme, together) if together else [])

    def _plan_problems(self) -> list[str]:
        """Problems of a plan beside other settings; empty if there are none."""
        given = [name for name in SETTINGS if getattr(self, name) is not None]
        given += ["embedding"] if self.embedding != AUTO else []
        problems = [f"{name} is for one scheme; a plan has it in its rules" for name in given]
        if not self.rules:
            problems.append(f"scheme {MIXED!r} needs a plan")
        return problems

    @property
    def at_rate(self) -> bool:
        """Whether levels of some matrices are chosen for a size."""
        return self.bits_per_weight is not None or any(
            getattr(rule.config, "at_rate", False) for rule in self.rules
        )

    @property
    def is_fitted(self) -> bool:
        """Whether levels of some matrices are chosen by what is known of them."""
        if self.rules:
            return any(is_fitted(rule.config) for rule in self.rules)
        return any(is_fitted(self.config_for(name)) for name in ("a layer's", EMBEDDING))

    @property
    def recovery_steps(self) -> int:
        """Steps of training after levels are fitted, 0 for none."""
        of_rules = (getattr(rule.config, "recover", None) for rule in self.rules)
        return max((steps or 0 for steps in (self.recover, *of_rules)), default=0)

    def asked_for(self, name: str) -> str:
        """The scheme that is asked for a matrix, which may be AUTO."""
        if self.rules:
            return plans.first(self.rules, name).scheme
        return self.embedding if name in (EMBEDDING, HEAD) else self.scheme

    def scheme_for(self, name: str) -> str | None:
        """The scheme of a checkpoint tensor that has no levels of its own.

        It is None for a vector, which is not quantized.
        """
        if name.endswith(("norm.weight", ".bias")):
            return None
        return _or_default(self.asked_for(name))

    def config_for(self, name: str) -> SchemeConfig | None:
        """The scheme's config for a checkpoint tensor.

        It is None for a vector, which is not quantized.
        """
        scheme = self.scheme_for(name)
        if scheme is None:
            return None
        if self.rules:
            return plans.first(self.rules, name).config
        settings: dict[str, Any] = {}
        if scheme == _or_default(self.scheme):
            settings = {name: getattr(self, name) for name in settings_of(scheme)}
        config: SchemeConfig = load(scheme).Config(**settings)
        return config


def _or_default(scheme: str) -> str:
    """The scheme of a matrix without levels of its own."""
    return DEFAULT if scheme == AUTO else scheme


def _value_problems(scheme: str, settings: dict[str, object]) -> list[str]:
    """Problems that a scheme has with the values of some of its settings."""
    try:
        load(scheme).Config(**settings)
    except UsageError as error:
        return error.problems
    return []


def settings_of(scheme: str) -> list[str]:
    """The settings of SETTINGS that a scheme has."""
    return [field.name for field in fields(load(scheme).Config) if field.name in SETTINGS]


def schemes_with(setting: str) -> list[str]:
    """The schemes that have a setting."""
    return [scheme for scheme in supported() if setting in settings_of(scheme)]
