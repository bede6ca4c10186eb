"""Which code runs a saga: classes, objects and factories, by the saga's name in the log."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sagaz_es.errors import ConfigurationError, DefinitionError, UnknownSagaName
from sagaz_es.sagas.decorators import saga_name_of
from sagaz_es.sagas.definition import Definition, StepDefinition, check_child, known_steps
from sagaz_es.sagas.fan_out import fan_out, one_of
from sagaz_es.sagas.saga import Saga

Source = type[Saga] | Saga


class Registry:
    """Definitions by saga name. Raises DefinitionError where two different ones have one name.

    The classes of child steps come with those of their parents; not in an engine of a named
    `group`, which has to say what it runs: two groups that have one class take its sagas from
    each other.
    """

    def __init__(
        self,
        sagas: Iterable[Source] | Mapping[str, Callable[..., Any]] = (),
        group: str = "",
    ) -> None:
        self._group = group
        self._sources: dict[str, object] = {}
        self._definitions: dict[str, Definition] = {}
        if isinstance(sagas, Mapping):
            for name, factory in sagas.items():
                if not callable(factory) and not isinstance(factory, Saga):
                    raise ConfigurationError(
                        f"sagas: {factory!r} makes no saga {name!r}: a function of its name does"
                    )
                self._sources[name] = factory
            return
        if isinstance(sagas, str | Saga | type) or not isinstance(sagas, Iterable):
            shown = sagas.__name__ if isinstance(sagas, type) else "OrderSaga"
            raise ConfigurationError(f"sagas: a list of classes, such as [{shown}], not {sagas!r}")
        listed = tuple(sagas)
        for saga in listed:
            self._add(saga)
        for saga in listed:
            self._add_children(self._sources[saga_name_of(saga)], known_steps(saga))
        for name, source in self._sources.items():  # of children that are given by their name
            if isinstance(source, type | Saga):
                self._check_children(name, known_steps(source))

    @property
    def names(self) -> tuple[str, ...]:
        """Registered names, in order of registration."""
        return tuple(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources or (isinstance(name, str) and self._each(name) is not None)

    def add(self, saga: Source) -> str:
        """Register a class or an object; its name in the log. Raises ConfigurationError where a
        child's class would come with it, and may not."""
        name = self._add(saga)
        if self._sources[name] is saga:
            self._add_children(saga, known_steps(saga))
        return name

    def _add_children(self, parent: object, steps: Iterable[StepDefinition]) -> None:
        for step in steps:
            if step.child_saga is None or step.child in self._sources:
                continue
            if self._group:
                raise ConfigurationError(
                    f"{_called(parent)} starts sagas of {_called(step.child_saga)} in its step "
                    f"{step.name!r}, and the engines of group {self._group!r} do not say that they "
                    "run those: if they do, name the class in connect(sagas=[…]), too; if another "
                    f"group does, give its saga by name: child {step.child!r}"
                )
            self.add(step.child_saga)

    def _add(self, saga: Source) -> str:
        if isinstance(saga, type) and issubclass(saga, Saga):
            name = saga.registered_name()
        elif isinstance(saga, Saga):
            name = saga.name
        else:
            raise ConfigurationError(f"sagas: {saga!r} is neither a Saga class nor a Saga object")
        known = self._sources.setdefault(name, saga)
        if known is not saga and _kind(known) is not _kind(saga) and not _alike(known, saga):
            raise DefinitionError(
                f"two sagas are named {name!r}: {_called(known)} and {_called(saga)}; "
                "give one of them another saga_name"
            )
        return name

    def resolve(self, saga: Source | str) -> Definition:
        """The definition to run. An object is run by itself, a class by one object of it."""
        if isinstance(saga, str):
            return self.by_name(saga)
        name = self.add(saga)
        if isinstance(saga, Saga):
            definition = saga.definition()
            if self._sources[name] is saga:
                self._definitions[name] = definition
            return definition
        return self.by_name(name)

    def by_name(self, name: str) -> Definition:
        """Raises UnknownSagaName; ConfigurationError where the class needs arguments."""
        definition = self._definitions.get(name)
        if definition is None:
            source = self._sources.get(name)
            if source is None:
                source = self._each(name)
            if source is None:
                raise UnknownSagaName(name, self.names)
            definition = self._make(name, source)
            # Of a factory's saga they show only now.
            self._add_children(source, definition.steps.values())
            self._definitions[name] = definition
            try:
                self._check_children(name, definition.steps.values(), make=True)
            except DefinitionError:
                del self._definitions[name]
                raise
        return definition

    def needed_by(self, saga_name: str) -> tuple[str, ...]:
        """The names of a saga and of all that it starts, and they start, as far as they are here.
        Raises what `by_name` does."""
        found, more = dict[str, None](), [saga_name]
        while more:
            name = more.pop()
            if name not in found and name in self:
                found[name] = None
                more += [step.child for step in self.by_name(name).steps.values() if step.child]
        return tuple(found)

    def _check_children(
        self, parent: str, steps: Iterable[StepDefinition], make: bool = False
    ) -> None:
        for step in steps:
            source = self._sources.get(step.child)
            if isinstance(source, type | Saga) and known_steps(source):
                check_child(parent, step, known_steps(source))
            elif source is not None and make:
                check_child(parent, step, self.by_name(step.child).steps.values())

    def _each(self, name: str) -> Saga | None:
        """The saga of this name that starts several of one that is registered."""
        found = one_of(name)
        return None if found is None or found[0] not in self._sources else fan_out(*found)

    @contextmanager
    def lent(self, name: str, definition: Definition | None) -> Iterator[None]:
        """For a while, sagas of this name run with this definition (None: with what is here)."""
        if definition is None:
            yield
            return
        before = self._definitions.get(name)
        self._definitions[name] = definition
        try:
            yield
        finally:
            if before is not None:
                self._definitions[name] = before
            elif name in self._sources:
                del self._definitions[name]
            # Else nobody else has code for the name: what waits goes on with this.

    def _make(self, name: str, source: object) -> Definition:
        if isinstance(source, Saga):
            return source.definition()
        assert callable(source)
        try:
            saga = source() if isinstance(source, type) else source(name)
        except TypeError as error:
            if isinstance(source, type) and _needs_arguments(source):
                raise ConfigurationError(
                    f"saga {name!r}: {_called(source)} cannot be made without arguments ({error}); "
                    "register a factory: connect(sagas={name: factory}), and pass live objects by "
                    "connect(resources=…)"
                ) from error
            if not isinstance(source, type) and not _takes_a_name(source):
                raise ConfigurationError(
                    f"saga {name!r}: its factory is called with the saga's name ({error}); write "
                    "def make(name), or lambda name: …"
                ) from error
            raise
        if not isinstance(saga, Saga):
            raise ConfigurationError(
                f"saga {name!r}: its factory gave a {type(saga).__name__}, not a Saga"
            )
        return saga.definition()


def _kind(source: object) -> object:
    # Two objects of one subclass are one saga; two made by hand are not.
    if isinstance(source, Saga):
        return source if type(source) is Saga else type(source)
    return source


def _alike(known: object, saga: object) -> bool:
    """Two sagas built by hand with the same steps: a function that builds one was called twice."""
    if not (type(known) is Saga and type(saga) is Saga):
        return False
    return known.definition().graph.fingerprint == saga.definition().graph.fingerprint


def _called(source: object) -> str:
    kind = source if isinstance(source, type) else type(source)
    return f"{kind.__module__}.{kind.__qualname__}"


def _takes_a_name(factory: Callable[..., Any]) -> bool:
    try:
        inspect.signature(factory).bind("name")
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def _needs_arguments(cls: type) -> bool:
    parameters = list(inspect.signature(cls).parameters.values())
    plain = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in plain for p in parameters)
