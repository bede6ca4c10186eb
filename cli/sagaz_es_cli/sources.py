"""`--app`: the code of sagas, out of a user's modules."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from types import ModuleType
from typing import Any, TextIO, TypeAlias

from sagaz_es.errors import ConfigurationError, SagaError
from sagaz_es.sagas.saga import Saga

SagaSource: TypeAlias = Any
"""A class, an object, or a factory."""


class AppNotUsable(ConfigurationError):
    """What `--app` names cannot be loaded, or is no saga."""

    def __init__(self, app: str, why: str) -> None:
        super().__init__(app, why)
        self.app, self.why = app, why

    def __str__(self) -> str:
        return f"--app {self.app}: {self.why}"


def load(apps: Iterable[str], *, prints_to: TextIO | None = None) -> dict[str, SagaSource]:
    """Saga name -> class, object or factory. Raises AppNotUsable.

    The current directory is looked in first. What a module prints goes to stderr, or there.
    """
    _look_here_first()
    found: dict[str, SagaSource] = {}
    for app in apps:
        with redirect_stdout(prints_to or sys.stderr):
            loaded = _load_one(app)
        for name, source in loaded.items():
            if found.setdefault(name, source) is not source:
                raise AppNotUsable(app, f"another --app gives a saga named {name!r} too")
    return found


def named(text: str) -> Any:
    """What `module:name` names. Raises AppNotUsable."""
    _look_here_first()
    module_name, _, path = text.partition(":")
    if not module_name or not path:
        raise AppNotUsable(text, "write it as module:name")
    value: Any = _import(text, module_name)
    for part in path.split("."):
        if not hasattr(value, part):
            raise AppNotUsable(text, f"module {module_name!r} has no {path!r}")
        value = getattr(value, part)
    return value


def _look_here_first() -> None:
    here = os.getcwd()
    if sys.path[:1] not in ([""], [here]):
        sys.path.insert(0, here)


def _load_one(app: str) -> dict[str, SagaSource]:
    module_name, colon, path = app.partition(":")
    if not module_name or (colon and not path):
        raise AppNotUsable(app, "write it as module:Class, or module for all sagas defined there")
    module = _import(app, module_name)
    return _named(app, _attribute(app, module, path)) if path else _all_of(app, module)


def _import(app: str, name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            why = f"module {name!r} needs {missing!r}, which is not installed"
        else:
            why = (
                f"there is no module {missing!r}; looked in {os.getcwd()} and in "
                f"{len(sys.path) - 1} more places (PYTHONPATH adds one)"
            )
        raise AppNotUsable(app, why) from error
    except SyntaxError as error:
        place = f"{error.filename}, line {error.lineno}"
        raise AppNotUsable(app, f"module {name!r} is no Python: {error.msg} ({place})") from error
    except SagaError as error:  # a definition that does not hold together
        raise AppNotUsable(app, str(error)) from error
    except Exception as error:
        raise AppNotUsable(
            app, f"module {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _attribute(app: str, module: ModuleType, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise AppNotUsable(
                app, f"module {module.__name__!r} has no {path!r}; sagas there: {_sagas_in(module)}"
            ) from None
    return value


def _all_of(app: str, module: ModuleType) -> dict[str, SagaSource]:
    classes = _classes(module)
    if not classes:
        raise AppNotUsable(
            app,
            f"module {module.__name__!r} defines no Saga class; name one: {module.__name__}:Class",
        )
    found: dict[str, SagaSource] = {}
    for cls in classes:
        name = cls.registered_name()
        if found.setdefault(name, cls) is not cls:
            raise AppNotUsable(app, f"two classes there are named {name!r}; name the one you mean")
    return found


def _named(app: str, value: Any) -> dict[str, SagaSource]:
    if isinstance(value, type) and issubclass(value, Saga):
        return {value.registered_name(): value}
    if isinstance(value, Saga):
        return {value.name: value}
    if isinstance(value, Mapping):
        for name, source in value.items():
            if not isinstance(name, str) or not callable(source):
                raise AppNotUsable(app, "a mapping there leads from saga names to factories")
        return dict(value)
    if isinstance(value, list | tuple):
        return {name: source for item in value for name, source in _named(app, item).items()}
    raise AppNotUsable(
        app, f"that is a {type(value).__name__}, neither a Saga class nor a Saga object"
    )


def _classes(module: ModuleType) -> list[type[Saga]]:
    """Saga classes that are defined in the module; bases without steps are none."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Saga)
        and value.__module__ == module.__name__
        and value._collected
    ]


def _sagas_in(module: ModuleType) -> str:
    names = [repr(cls.__name__) for cls in _classes(module)]
    names += [repr(name) for name, value in vars(module).items() if isinstance(value, Saga)]
    return ", ".join(names) or "none"
