"""Lifetimes of the values of an ML Program, and updates of states that are done in place."""

from __future__ import annotations

from dataclasses import replace

from runtime_ref.coreml.mil_steps import Source, Step


def with_lifetimes(steps: list[Step], kept: set[str]) -> list[Step]:
    """Steps with their lifetimes: which values die after each, and which updates are in place.

    `kept` are the names of values that live to the end.
    """
    last: dict[str, int] = {}
    for i, step in enumerate(steps):
        last |= dict.fromkeys([*step.reads(), *(output.name for output in step.outputs)], i)
    dying: dict[int, list[str]] = {}
    for name, i in last.items():
        if name not in kept:
            dying.setdefault(i, []).append(name)
    # Of values read from a state, or made by updates: the state, or "" for none.
    origin: dict[str, str] = {}
    marked = []
    for i, step in enumerate(steps):
        x = step.tensors.get("x")
        if step.kind == "read_state":
            origin[step.outputs[0].name] = step.state
        elif step.kind == "slice_update":
            state = origin.get(x, "") if isinstance(x, str) else ""
            origin[step.outputs[0].name] = state
            step = replace(
                step, chain=x in origin, early=state if _is_written_next(steps, i, state) else ""
            )
        marked.append(replace(step, dies=tuple(dying.get(i, ()))))
    return marked


def _is_written_next(steps: list[Step], i: int, state: str) -> bool:
    """Whether the next access to the state stores the result of update `i`.

    Further updates of that result count as the result.
    """
    names: set[Source] = {steps[i].outputs[0].name}
    for step in steps[i + 1 :]:
        if step.state == state:
            return step.kind == "write_state" and step.tensors["data"] in names
        if step.kind == "slice_update" and step.tensors["x"] in names:
            names.add(step.outputs[0].name)
    return False
