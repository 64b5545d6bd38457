"""The scheme of each matrix of one checkpoint: the one that is asked for, or its own levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.bundle import EMBEDDING, HEAD
from exporter.checkpoint.checkpoint import Checkpoint
from exporter.errors import UsageError
from exporter.quant import rules, ternary
from exporter.quant.config import QuantConfig
from exporter.quant.rules import AUTO, Rule
from exporter.quant.tensor import SchemeConfig, effective_group_size, is_fitted


@dataclass(frozen=True)
class MatrixPlan:
    """The scheme of a matrix and its settings.

    own_levels: levels and scales are those of the checkpoint, taken over without a change.
    """

    scheme: str
    config: SchemeConfig
    own_levels: bool

    @property
    def is_fitted(self) -> bool:
        """Whether levels are chosen by what is known of the matrix."""
        return not self.own_levels and is_fitted(self.config)

    @property
    def at_rate(self) -> bool:
        """Whether levels are chosen for a size."""
        return getattr(self.config, "at_rate", False)

    @property
    def recover(self) -> int:
        """Steps of training of the layer of a matrix; 0 where there is none."""
        return 0 if self.own_levels else getattr(self.config, "recover", None) or 0

    def group_size(self, cols: int) -> int:
        """The number of weights that share a scale, of a matrix with `cols` columns."""
        return effective_group_size(self.config.group_size, cols)


def plan_matrix(config: QuantConfig, checkpoint: Checkpoint, name: str) -> MatrixPlan | None:
    """How a tensor of the checkpoint becomes levels; None for a vector, which stays as it is."""
    scheme, settings = config.scheme_for(name), config.config_for(name)
    if scheme is None or settings is None:
        return None
    found = checkpoint.ternary(name)
    if found is None or not _takes_own_levels(config, name):
        return MatrixPlan(scheme, settings, own_levels=False)
    whole_row = found.group_size >= found.shape[1]
    own = ternary.Config(None if whole_row else found.group_size)
    return MatrixPlan(ternary.NAME, own, own_levels=True)


def names_at_rate(config: QuantConfig, checkpoint: Checkpoint) -> list[str]:
    """The matrices of which a number of bits per weight is asked."""
    plans = {name: plan_matrix(config, checkpoint, name) for name in checkpoint.names}
    return [n for n, p in plans.items() if p and p.at_rate]


def fitted(config: QuantConfig, checkpoint: Checkpoint) -> dict[str, MatrixPlan]:
    """The matrices whose levels are chosen by what is known of them, with their plans."""
    plans = {name: plan_matrix(config, checkpoint, name) for name in checkpoint.names}
    return {n: p for n, p in plans.items() if p and p.is_fitted}


def trained(plans: Mapping[str, MatrixPlan]) -> dict[str, MatrixPlan]:
    """The matrices that are trained, with their plans: those of layers."""
    return {n: p for n, p in plans.items() if p.recover and n not in (EMBEDDING, HEAD)}


def check(config: QuantConfig, checkpoint: Checkpoint) -> None:
    """Raises UsageError where a plan, or a training of layers, does not fit a checkpoint."""
    if config.rules:
        rules.check(config.rules, [n for n in checkpoint.names if len(checkpoint.shape(n)) == 2])
    if config.recovery_steps:
        _check_recovery(fitted(config, checkpoint))


def _check_recovery(plans: Mapping[str, MatrixPlan]) -> None:
    """Raises UsageError where no layer would be trained, or with several numbers of steps."""
    asked = trained(plans)
    if not asked:
        raise UsageError(
            "recover trains nothing here: no layer has matrices that get new ternary levels, or "
            "levels at a rate",
            hint="leave recover away, or give a rate such as --bits-per-weight 2.5; levels that a "
            "checkpoint has of its own stay as they are",
        )
    steps = sorted({plan.recover for plan in asked.values()})
    if len(steps) > 1:
        found = ", ".join(map(str, steps))
        raise UsageError(
            f"all layers are trained together, with one number of steps; the plan has {found}",
            hint="give the same recover everywhere",
        )


def found(
    config: QuantConfig, checkpoint: Checkpoint, constants: Mapping[str, float]
) -> list[Rule]:
    """The plan that a configuration came to: a rule for each matrix, which gives the same again.

    constants: those of the matrices at a rate, by name.
    """
    made = []
    for name in checkpoint.names:
        plan = plan_matrix(config, checkpoint, name)
        if plan is None:
            continue
        settings = vars(plan.config)
        if name in constants:
            settings = {"constant": constants[name], "recover": plan.recover or None}
        given = {k: v for k, v in settings.items() if v is not None}
        scheme, settings = (AUTO, {}) if plan.own_levels else (plan.scheme, given)
        made.append(Rule(name, scheme, settings))
    return made


def _takes_own_levels(config: QuantConfig, name: str) -> bool:
    """Whether levels that a matrix has are wanted: nothing else was asked for by name."""
    asked = config.asked_for(name)
    settings = config.config_for(name)
    plain = ternary.Config(recover=getattr(settings, "recover", None))
    return asked == AUTO or (asked == ternary.NAME and settings == plain)


def summary(config: QuantConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """The quantization of a checkpoint as a manifest says it: what AUTO came to in its place."""
    taken: dict[str, dict[str, None]] = {"scheme": {}, "embedding": {}}
    for name in checkpoint.names:
        if plan := plan_matrix(config, checkpoint, name):
            taken["embedding" if name in (EMBEDDING, HEAD) else "scheme"][plan.scheme] = None
    return config.to_dict() | {key: ", ".join(schemes) for key, schemes in taken.items()}


def warnings(config: QuantConfig, checkpoint: Checkpoint) -> list[str]:
    """What will disappoint about the scheme of a checkpoint that has levels of its own."""
    plans = {
        n: plan_matrix(config, checkpoint, n) for n in checkpoint.names if checkpoint.ternary(n)
    }
    changed = [
        f"{name} as {plan.scheme}" for name, plan in plans.items() if plan and not plan.own_levels
    ]
    told = []
    if changed:
        told.append(
            f"ternary in the checkpoint, and quantized again: {len(changed)} matrices, such as "
            f"{changed[0]}; without --scheme, --embedding and --group-size they stay what they are"
        )
    if config.group_size is not None and len(changed) < len(plans):
        told.append(
            f"--group-size changes nothing for {len(plans) - len(changed)} matrices: their levels "
            "and groups are those of the checkpoint"
        )
    return told
