"""What a step is given: its own copy of the context, which notes what is read and finds what
changed.

A step's reads are what makes a replay's plan precise: a step that read nothing changed is reused.
Nested mutation is found, too, because the texts before and after are compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from sagaz_es.codec.values import from_text, to_text
from sagaz_es.core.plan import ALL_KEYS, result_key
from sagaz_es.errors import (
    ConfigurationError,
    LargePayloadWarning,
    MemoryFootprintError,
    ResourceMissing,
    StepNotFound,
    UnstorableValue,
)
from sagaz_es.sagas.inputs import check_key
from sagaz_es.sagas.typed import context_type

T = TypeVar("T")
_SCALARS = (str, int, float, bool, type(None))
_MISSING = object()


class SagaContext(dict[str, Any]):
    """A context as sagaz spells it: a dict with `set`, `has` and `data`. It holds what can be
    recorded; large values go to the blob store by themselves."""

    __slots__ = ("_limits", "external_refs", "metadata")

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        external_refs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data or {})
        self.metadata = dict(metadata or {})  # the caller's own: it is not recorded
        self.external_refs = dict(external_refs or {})
        self._limits: tuple[int, int] = (0, 0)  # to warn over, to refuse over

    def set(self, key: str, value: Any) -> None:
        """As `context[key] = value`, within the limits given to `configure`."""
        warn, most = getattr(self, "_limits", (0, 0))
        if warn or most:
            size = len(to_text(value, key).encode())
            if most and size > most:
                raise MemoryFootprintError(key, size, most)
            if warn and size > warn:
                warnings.warn(f"key {key!r}: {size} bytes", LargePayloadWarning, stacklevel=2)
        self[key] = value

    def has(self, key: str) -> bool:
        return key in self

    @property
    def data(self) -> dict[str, Any]:
        """The context itself, as sagaz names it."""
        return self

    async def set_async(self, key: str, value: Any) -> None:
        self[key] = value

    async def get_async(self, key: str, default: Any = None) -> Any:
        return self.get(key, default)

    async def store_external(self, key: str, value: Any) -> None:
        self[key] = value

    async def load_external(self, key: str) -> Any:
        return self[key]

    def configure(
        self,
        saga_id: Any = None,
        storage: Any = None,
        auto_offload: bool = False,
        offload_threshold: int = 1_000_000,
        warn_on_large: bool = True,
        warn_threshold: int = 10_000_000,
        strict_limit: int | None = None,
    ) -> None:
        """Limits for what is `set` from now on, in bytes: over `warn_threshold` it is told of, over
        `strict_limit` refused (MemoryFootprintError).

        Where large values are kept is the store's matter; `storage` and `offload_threshold` are
        accepted for sagaz. Raises ConfigurationError for `auto_offload` without a storage.
        """
        if auto_offload and storage is None:
            raise ConfigurationError("auto_offload: it needs a storage; leave both out")
        self._limits = (warn_threshold if warn_on_large else 0, strict_limit or 0)

    def register_stream(self, key: str, generator: object) -> None:
        """Raises UnstorableValue: a stream cannot be recorded."""
        hint = "a stream cannot be recorded; write it to a file or a bucket and keep its address"
        raise UnstorableValue(key, type(generator).__name__, hint)

    def stream(self, key: str) -> Any:
        """As `register_stream`."""
        self.register_stream(key, self.get(key))


class FinalContext(SagaContext):
    """The context of a saga that has run. A key that is missing but names a step reads as its
    result, as it does in the steps."""

    __slots__ = ("_results",)

    def __init__(self, context: Mapping[str, Any], results: Mapping[str, str]) -> None:
        super().__init__(context)
        self._results = results

    def __missing__(self, key: str) -> Any:
        text = self._results.get(key)
        if text is None:
            raise KeyError(key)
        return from_text(text) if text else None

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def __contains__(self, key: object) -> bool:
        return dict.__contains__(self, key) or key in self._results


class Resources(dict[str, Any]):
    """The live objects given to `connect`, as steps see them; to be read only. Raises
    ResourceMissing (a KeyError) with the names that there are, and TypeError for an assignment."""

    def __missing__(self, name: str) -> Any:
        raise ResourceMissing(name, tuple(self))

    def __repr__(self) -> str:  # by name alone: a client's address may hold a password
        return f"<resources: {', '.join(map(str, self)) or 'none'}>"

    def _refuse(self, *args: Any, **items: Any) -> NoReturn:
        raise TypeError(
            "ctx.resources cannot be changed: it is this process's own, and gone with it; set "
            "ctx[…] for later steps to find, or change an object in it"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse


class StepContext(SagaContext):
    """A dict of the step's own. Changes to it are recorded when the step completes.

    `saga_id`, `step`, `attempt` (1, 2 …; grows over restarts, too), `idempotency_key` (the same in
    every attempt), `is_replay`, `resources` (live objects given to `connect`), `result_of(step)`,
    `signal` (payload of the signal that the step waited for), `compensation_results` (in a
    compensation: what those before it returned, by step), `typed(Class)` (the context as one).
    A key that is missing but names a completed step reads as that step's result, and "saga_id" as
    the saga's.
    """

    __slots__ = (
        "_before",
        "_reads",
        "_results",
        "_saga_name",
        "_undone",
        "_written",
        "attempt",
        "idempotency_key",
        "is_replay",
        "once_keys",
        "resources",
        "saga_id",
        "signal",
        "step",
    )

    def __init__(
        self,
        texts: Mapping[str, str],
        *,
        saga_id: str = "",
        step: str = "",
        attempt: int = 1,
        idempotency_key: str = "",
        is_replay: bool = False,
        resources: Mapping[str, Any] | None = None,
        results: Mapping[str, str] | None = None,
        signal: str = "",
        known: dict[str, tuple[str, Any]] | None = None,
        undone: Mapping[str, str] | None = None,
        saga_name: str = "",
    ) -> None:
        dict.__init__(self, values_of(texts, known))
        self._before = texts  # the step's own, see `engine.steps.contexts`
        self._reads: set[str] = set()
        self._written: set[str] = set()
        self._results = results or {}
        self._undone, self._saga_name = undone, saga_name
        self.saga_id, self.step, self.attempt = saga_id, step, attempt
        self.idempotency_key, self.is_replay = idempotency_key, is_replay
        self.signal: Any = from_text(signal) if signal else None
        self.resources: Mapping[str, Any] = resources if resources is not None else {}
        self.once_keys: dict[tuple[str, str], bool] = {}  # used by this attempt, see `once`

    # --- reading ---

    def __getitem__(self, key: str) -> Any:
        self._reads.add(key)
        try:
            return dict.__getitem__(self, key)
        except KeyError:
            if key in self._results:
                return self.result_of(key)
            if key == "saga_id":
                return self.saga_id
            raise

    def get(self, key: str, default: Any = None) -> Any:
        self._reads.add(key)
        value = dict.get(self, key, _MISSING)
        if value is not _MISSING:
            return value
        if key in self._results:
            return self.result_of(key)
        return self.saga_id if key == "saga_id" else default

    def __contains__(self, key: object) -> bool:
        if isinstance(key, str):
            self._reads.add(key)
        return dict.__contains__(self, key) or key in self._results or key == "saga_id"

    def result_of(self, step: str) -> Any:
        """The recorded result of a completed step. Raises StepNotFound."""
        text = self._results.get(step)
        if text is None:
            done, why = tuple(self._results), "has no completed step"
            raise StepNotFound(self.saga_id, step, done, why, "completed are")
        self._reads.add(result_key(step))
        return from_text(text) if text else None

    @property
    def compensation_results(self) -> dict[str, Any]:
        """What the compensations that were done returned, by step; those that returned nothing
        are left out."""
        return {step: from_text(text) for step, text in (self._undone or {}).items()}

    def typed(self, kind: type[T]) -> T:
        """The context as a Struct, dataclass, TypedDict or pydantic model: a copy, for reading.

        Only its fields count as read. Raises ContextMismatch (path, what was found and expected).
        """
        known = context_type(kind)
        self._reads |= known.keys
        values = {
            key: dict.__getitem__(self, key) for key in known.keys if dict.__contains__(self, key)
        }
        as_kind: T = known.read(values, self._saga_name, f"in step {self.step!r}")
        return as_kind

    def _whole(self) -> None:
        self._reads.add(ALL_KEYS)

    def __iter__(self) -> Iterator[str]:
        self._whole()
        return dict.__iter__(self)

    def keys(self) -> Any:
        self._whole()
        return dict.keys(self)

    def values(self) -> Any:
        self._whole()
        return dict.values(self)

    def items(self) -> Any:
        self._whole()
        return dict.items(self)

    def copy(self) -> dict[str, Any]:
        self._whole()
        return dict(dict.items(self))

    def __reversed__(self) -> Iterator[str]:
        self._whole()
        return dict.__reversed__(self)

    def __repr__(self) -> str:
        self._whole()
        return dict.__repr__(self)

    def __len__(self) -> int:
        # Not a read of the whole: truth tests are common, and say nothing about the values.
        return dict.__len__(self)

    def __eq__(self, other: object) -> bool:
        self._whole()
        return dict.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __or__(self, other: Any) -> Any:
        return self.copy() | dict(other)

    def __ror__(self, other: Any) -> Any:
        return dict(other) | self.copy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy or pickle is a plain dict."""
        return dict, (self.copy(),)

    # --- writing ---

    def __setitem__(self, key: str, value: Any) -> None:
        self._written.add(key)
        dict.__setitem__(self, key, value)

    def __delitem__(self, key: str) -> None:
        self._written.add(key)
        dict.__delitem__(self, key)

    def setdefault(self, key: str, default: Any = None) -> Any:
        self._reads.add(key)
        if not dict.__contains__(self, key):
            self[key] = default
        return dict.__getitem__(self, key)

    def pop(self, key: str, *default: Any) -> Any:
        self._reads.add(key)
        self._written.add(key)
        return dict.pop(self, key, *default)

    def popitem(self) -> tuple[str, Any]:
        self._whole()
        key, value = dict.popitem(self)
        self._written.add(key)
        return key, value

    def clear(self) -> None:
        self._written.update(dict.keys(self))
        dict.clear(self)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __ior__(self, other: Any) -> StepContext:  # type: ignore[override]
        self.update(other)
        return self

    # --- what came of it ---

    @contextmanager
    def unnoticed(self) -> Iterator[None]:
        """What hooks and listeners look at is not read by the step."""
        reads = set(self._reads)
        try:
            yield
        finally:
            self._reads = reads

    def reads(self) -> list[str]:
        """Keys read, sorted; `["*"]` if the whole was taken."""
        if ALL_KEYS in self._reads:
            return [ALL_KEYS]
        # A context has no other keys: it makes no difference that such a one was looked for.
        return sorted(key for key in self._reads if isinstance(key, str) and _is_unicode(key))

    def delta(self) -> tuple[dict[str, str], list[str]]:
        """Keys set or changed (key -> JSON text), and keys deleted. Raises UnstorableValue."""
        before = self._before
        suspects = self._written | (
            set(dict.keys(self)) if ALL_KEYS in self._reads else self._reads
        )
        changed: dict[str, str] = {}
        deleted: list[str] = []
        for key in suspects:
            value = dict.get(self, key, _MISSING)
            if value is _MISSING:
                if key in before:
                    deleted.append(key)
                continue
            check_key(key)
            if key not in self._written and type(value) in _SCALARS:
                continue  # cannot have been changed in place
            text = to_text(value, key)
            if text != before.get(key):
                changed[key] = text
        deleted.sort()
        return changed, deleted


def _is_unicode(key: str) -> bool:
    try:
        return key.isascii() or bool(key.encode())
    except UnicodeEncodeError:
        return False


def values_of(texts: Mapping[str, str], known: dict[str, tuple[str, Any]] | None) -> dict[str, Any]:
    """Each text's value, a copy of the step's own.

    `known` keeps scalars for the steps that follow: nobody can change them in place.
    """
    if known is None:
        return {key: from_text(text) for key, text in texts.items()}
    values: dict[str, Any] = {}
    for key, text in texts.items():
        was = known.get(key)
        if was is not None and was[0] is text:
            values[key] = was[1]
            continue
        value = values[key] = from_text(text)
        if type(value) in _SCALARS:
            known[key] = (text, value)
    return values
