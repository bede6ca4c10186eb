"""Exit statuses, and which error means which: the one place where that is decided."""

from __future__ import annotations

from sagaz_es.errors import (
    ConfigurationError,
    ContextMismatch,
    DefinitionChanged,
    InvalidOverride,
    NotFound,
    RequestRefusedError,
    SagaError,
    UnknownSagaName,
)

DONE, FAILED, USAGE, REFUSED, NOT_FOUND, PARTLY = range(6)
SIGNALLED = 128
"""As shells report a process that a signal ended: its number is added."""

MEANINGS = {
    DONE: "done",
    FAILED: "failed",
    USAGE: "wrong usage",
    REFUSED: "refused",
    NOT_FOUND: "not found",
    PARTLY: "partly done",
}

# The first class that fits counts: some errors are two things at once.
_BY_CLASS: tuple[tuple[type[BaseException], int], ...] = (
    (NotFound, NOT_FOUND),
    (UnknownSagaName, NOT_FOUND),
    (RequestRefusedError, REFUSED),
    (DefinitionChanged, REFUSED),
    (InvalidOverride, USAGE),
    (ContextMismatch, USAGE),
    (ConfigurationError, USAGE),
)


def status_of(error: BaseException) -> int:
    """The exit status that an error means."""
    return next((status for kind, status in _BY_CLASS if isinstance(error, kind)), FAILED)


def root_of(error: BaseException) -> BaseException:
    """The error to tell of: out of a group of them one of ours, if there is one."""
    while isinstance(error, BaseExceptionGroup):
        leaves = sorted(error.exceptions, key=lambda leaf: not isinstance(leaf, SagaError))
        error = leaves[0]
    return error


def sentence_of(error: BaseException) -> str:
    """What to tell a person: one line."""
    text = str(error).strip()
    if not isinstance(error, SagaError | OSError):
        text = f"unexpected {type(error).__name__}: {text}" if text else type(error).__name__
        text += " (SAGAZ_ES_DEBUG=1 shows where)"
    return " ".join((text or type(error).__name__).split())
