"""The steps of a class: what its decorators and those of its bases say, checked when it is made.

A duplicate name, a compensation for an unknown step or an override without its decorator never
reaches a run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from msgspec import structs

from sagaz_es.errors import DefinitionError
from sagaz_es.sagas import options as check
from sagaz_es.sagas.decorators import MARK, CompensationMark, Mark, RecoveryMark, spelled
from sagaz_es.sagas.definition import StepDefinition


def collect(cls: type) -> tuple[StepDefinition, ...]:
    """Marked methods in written order, base classes first; an override replaces its base's step,
    and None drops it."""
    methods: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for attribute, value in vars(base).items():
            if hasattr(value, MARK):
                methods[attribute] = value
            elif hasattr(getattr(value, "__func__", None), MARK):  # static and class methods
                raise DefinitionError(
                    f"{cls.__name__}: {attribute} is a {type(value).__name__}, and no step or "
                    "compensation then: write it as a method, (self, ctx)"
                )
            elif attribute in methods:
                inherited = methods.pop(attribute)
                if value is not None:  # else a step would be gone, or not undone, without a word
                    raise DefinitionError(_undecorated(cls, base, attribute, inherited))
    steps: dict[str, StepDefinition] = {}
    marks: list[CompensationMark | RecoveryMark] = []
    for value in methods.values():
        mark = _running(value)
        _check_method(cls, mark)
        if not isinstance(mark, StepDefinition):
            marks.append(mark)
        elif mark.name in steps:
            raise DefinitionError(f"{cls.__name__}: step {mark.name!r} is declared twice")
        else:
            steps[mark.name] = mark
    for mark in marks:
        what = "compensation" if isinstance(mark, CompensationMark) else "recovery handler"
        step = steps.get(mark.step)
        if step is None:
            known = ", ".join(repr(name) for name in steps) or "none"
            raise DefinitionError(
                f"{cls.__name__}: there is a {what} for {mark.step!r}, which is no step; "
                f"steps: {known}"
            )
        if isinstance(mark, CompensationMark):
            if step.child:
                raise DefinitionError(own_undoing(f"{cls.__name__}: ", step))
            twice = step.compensation is not None
            hooks = structs.replace(step.hooks, on_compensate=mark.on_compensate)
            steps[mark.step] = replace(step, compensation=mark.compensation, hooks=hooks)
        else:
            twice = step.recovery is not None
            steps[mark.step] = replace(step, recovery=mark.recovery)
        if twice:
            raise DefinitionError(f"{cls.__name__}: step {mark.step!r} has two {what}s")
    return tuple(steps.values())


def _running(value: Any) -> Mark:
    """The mark of a class attribute. A decorator above ours copies the mark to its wrapper
    (functools.wraps), and the wrapper is what has to run."""
    mark: Mark = getattr(value, MARK)
    if isinstance(mark, StepDefinition):
        return mark if mark.function is value else replace(mark, function=value)
    if isinstance(mark, CompensationMark):
        return replace(mark, compensation=replace(mark.compensation, function=value))
    return replace(mark, recovery=replace(mark.recovery, function=value))


def _check_method(cls: type, mark: Mark) -> None:
    """Raises DefinitionError where it cannot be called as it will be."""
    takes: tuple[str, ...] = ("ctx",)
    if isinstance(mark, StepDefinition):
        what, function = f"step {mark.name!r}", mark.function
    elif isinstance(mark, CompensationMark):
        what, function = f"the compensation of step {mark.step!r}", mark.compensation.function
        takes = mark.compensation.takes
    else:
        what, function = f"the recovery of step {mark.step!r}", mark.recovery.function
        takes = ("ctx", "error")
    check.check_call(f"{cls.__name__}: {what}", function, "self", *takes)
    if isinstance(mark, StepDefinition) and isinstance(mark.resolve, str):
        what = f"{cls.__name__}: resolve of step {mark.name!r}"
        named = getattr(cls, mark.resolve, None)
        if named is None:
            raise DefinitionError(f"{what}: there is no method {mark.resolve!r}")
        check.check_call(what, named, "self", "ctx")


def _undecorated(cls: type, base: type, attribute: str, inherited: Any) -> str:
    mark: Mark = getattr(inherited, MARK)
    if isinstance(mark, StepDefinition):
        what = f"step {mark.name!r}"
    else:
        kind = "compensation" if isinstance(mark, CompensationMark) else "recovery handler"
        what = f"{kind} of step {mark.step!r}"
    whose = "" if base is cls else f"{base.__name__}."
    return (
        f"{cls.__name__}: {whose}{attribute} overrides the {what} without its decorator: "
        f"repeat {spelled(mark)[:-1]}, …) above it, or write {attribute} = None to drop it"
    )


def own_undoing(where: str, step: StepDefinition) -> str:
    return (
        f"{where}step {step.name!r} is undone by taking its saga {step.child!r} back; "
        "what else undoes it belongs into a compensation of that saga"
    )
