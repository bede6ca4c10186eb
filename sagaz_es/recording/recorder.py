"""SagaRecorder: facts of sagas that other code runs, written to the same log.

No engine owns such a saga. Each recorder numbers its own facts per saga, and the fold accepts the
next number of each writer in log order; so several services may record one saga, and an append of
unknown outcome goes out again as the identical events. A partition has a writer id of its own.

How many sagas' counts are remembered is bounded: when a partition's are full, it gets a new writer
id and counts from 1, which the fold takes as one more recorder. The same after an append whose
outcome stayed unknown: its numbers may or may not be taken, so nobody may go on counting from them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeAlias

from sagaz_es.codec.values import to_text
from sagaz_es.core import events as e
from sagaz_es.core.plan import ALL_KEYS
from sagaz_es.core.texts import join_names, join_object
from sagaz_es.engine.config import SystemClock
from sagaz_es.errors import AppendRefused, AppendUnknown, ConfigurationError, SagaError
from sagaz_es.ports import BlobStore, Clock, EventLog
from sagaz_es.sagas.inputs import MAX_REASON_BYTES, check_id, check_text, context_texts
from sagaz_es.sagas.large_values import LargeValues
from sagaz_es.snapshots import to_us

logger = logging.getLogger("sagaz_es.recorder")

MAX_BATCH_ENTRIES = 500
MAX_BATCH_BYTES = 500_000
MAX_TRACE = 16_000
"""Characters of a traceback, its end: where the error arose; of a message, its beginning."""

REMEMBERED_SAGAS = 100_000
"""Over all partitions; about 15 MB."""

At: TypeAlias = "datetime | str | None"
"""When it happened: a time (naive is UTC), ISO text, or None: now."""

Failure: TypeAlias = "BaseException | str | None"


class SagaRecorder:
    """Records sagas that other code runs: `async with SagaRecorder(log, "order") as recorder`.

    Each call returns once its fact stands in the log. Facts of one saga stand in the order of the
    calls; calls that wait at the same time share appends. A saga's first fact begins it, whichever
    it is. A saga that an engine runs takes no recorded facts: the fold rejects them.

    `log` is an EventLog, which stays open afterwards, or a URL for `opener`. Values over 256 KiB
    need `blobs`. After `retry_seconds` of unknown outcomes a call raises AppendUnknown: its fact
    may stand, and recording it again may tell it twice. Raises UnstorableValue with the path of a
    value that cannot be kept, AppendRefused for a fact too large for the log, ConfigurationError
    for what is no id, step, time, attempt or error.
    """

    def __init__(
        self,
        log: EventLog | str,
        saga_name: str,
        *,
        opener: Callable[[str], EventLog] | None = None,
        blobs: BlobStore | None = None,
        clock: Clock | None = None,
        retry_seconds: float = 30.0,
        remembered_sagas: int = REMEMBERED_SAGAS,
    ) -> None:
        if isinstance(log, str) and opener is None:
            raise ConfigurationError(f"log: an EventLog, or an opener for the URL {log!r}")
        self.saga_name = _text("saga_name", saga_name)
        self._given, self._opener = log, opener
        self._large = LargeValues(blobs) if blobs is not None else None
        self._clock: Clock = clock or SystemClock()
        self._retry_seconds, self._remembered_sagas = retry_seconds, remembered_sagas
        self._log: EventLog | None = None
        self._lanes: dict[int, _Lane] = {}

    async def __aenter__(self) -> Self:
        log = self._given
        if isinstance(log, str):
            assert self._opener is not None
            log = self._opener(log)
        await log.open()
        self._log = log
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Wait for what is on its way; twice is harmless."""
        log, self._log = self._log, None
        if log is None:
            return
        try:
            await asyncio.gather(*(lane.drained() for lane in self._lanes.values()))
        finally:
            self._lanes.clear()
            if isinstance(self._given, str):
                await log.close()

    # --- the saga

    async def started(
        self,
        saga_id: Any,
        context: Mapping[str, Any] | None = None,
        at: At = None,
        *,
        actor: str = "",
        cause: str = "",
    ) -> None:
        """It began, with this data. If other facts were first, what they set stays."""
        fact = e.SagaStarted(
            context=await self._object(context),
            actor=_said("actor", actor),
            cause=_said("cause", cause),
        )
        await self._record(saga_id, fact, at)

    async def completed(self, saga_id: Any, at: At = None) -> None:
        """Every step is done."""
        await self._record(saga_id, e.SagaCompleted(), at)

    async def failed(
        self, saga_id: Any, error: Failure = None, at: At = None, *, step: str = ""
    ) -> None:
        """It ended with effects that nobody wanted to stand. `error`: where no step said it."""
        kind, message, _ = _told(error)
        await self._record(saga_id, e.SagaFailed(kind, message, _said("step", step)), at)

    async def rolled_back(
        self, saga_id: Any, error: Failure = None, at: At = None, *, step: str = ""
    ) -> None:
        """It ended, and everything that was done is undone."""
        kind, message, _ = _told(error)
        await self._record(saga_id, e.SagaRolledBack(kind, message, _said("step", step)), at)

    async def cancelled(
        self, saga_id: Any, at: At = None, *, reason: str = "", actor: str = ""
    ) -> None:
        """Somebody cancelled it; what it did is undone."""
        await self._record(
            saga_id, e.SagaCancelled(_said("reason", reason), _said("actor", actor)), at
        )

    # --- its steps

    async def step_started(
        self, saga_id: Any, step: str, at: At = None, *, attempt: int = 1
    ) -> None:
        """An attempt began."""
        await self._record(saga_id, e.StepStarted(_text("step", step), _attempt(attempt)), at)

    async def step_completed(
        self,
        saga_id: Any,
        step: str,
        result: Any = None,
        changes: Mapping[str, Any] | None = None,
        at: At = None,
        *,
        deleted: Iterable[str] = (),
        reads: Iterable[str] | None = None,
        attempt: int = 1,
    ) -> None:
        """The step did its work: its result, the keys of the context that it set, those it deleted.

        As in a saga that an engine runs, a mapping result is merged into the context. `reads`: the
        keys that it read, for the plan of a replay; None: unknown, so it may have read them all.
        """
        _text("step", step)
        texts = context_texts(result) if isinstance(result, Mapping) else {}
        texts |= context_texts(changes)
        if self._large is not None:
            texts = await self._large.off_load(texts)
        fact = e.StepCompleted(
            step,
            _attempt(attempt),
            result=await self._value(result, "result"),
            keys_set=join_object(texts) if texts else "",
            keys_deleted=join_names(_text("deleted", key, empty=True) for key in deleted),
            reads=join_names(
                [ALL_KEYS] if reads is None else (_text("reads", key, empty=True) for key in reads)
            ),
        )
        await self._record(saga_id, fact, at)

    async def step_failed(
        self,
        saga_id: Any,
        step: str,
        error: Failure = None,
        at: At = None,
        *,
        attempt: int = 1,
        retry_at: datetime | str | None = None,
        unknown: bool = False,
    ) -> None:
        """An attempt failed: for good, unless it says when the next one is. `unknown`: its effect
        may have happened all the same."""
        kind, message, trace = _told(error)
        fact = e.StepFailed(
            _text("step", step),
            _attempt(attempt),
            kind,
            message,
            trace,
            retry_at=0 if retry_at is None else _us_of("retry_at", retry_at),
            unknown=unknown,
        )
        await self._record(saga_id, fact, at)

    async def compensated(
        self, saga_id: Any, step: str, result: Any = None, at: At = None, *, attempt: int = 1
    ) -> None:
        """The step's effect is undone; the first time, the saga goes back from there on."""
        fact = e.StepCompensated(
            _text("step", step), _attempt(attempt), await self._value(result, "result")
        )
        await self._record(saga_id, fact, at)

    async def compensation_failed(
        self, saga_id: Any, step: str, error: Failure = None, at: At = None, *, attempt: int = 1
    ) -> None:
        """The step's effect could not be undone: it stands."""
        kind, message, trace = _told(error)
        fact = e.StepCompensationFailed(
            _text("step", step), _attempt(attempt), kind, message, trace
        )
        await self._record(saga_id, fact, at)

    # --- inside

    async def _record(self, saga_id: Any, fact: e.Fact, at: At) -> None:
        log = self._log
        if log is None:
            raise RuntimeError("the recorder is not open: use it with `async with`")
        key = check_id(saga_id)
        partition = log.partition_of(key)
        lane = self._lanes.get(partition)
        if lane is None:
            remembered = max(1, self._remembered_sagas // max(1, log.partitions))
            lane = _Lane(log, partition, self.saga_name, remembered, self._retry_seconds)
            self._lanes[partition] = lane
        await lane.submit(_Told(key, self._time(at), fact))

    def _time(self, at: At) -> int:
        if at is None:
            return self._clock.now()
        return _us_of("at", at)

    async def _object(self, values: Mapping[str, Any] | None) -> str:
        texts = context_texts(values)
        return join_object(texts if self._large is None else await self._large.off_load(texts))

    async def _value(self, value: Any, path: str) -> str:
        if value is None:
            return ""
        text = to_text(dict(value) if isinstance(value, Mapping) else value, path)
        return text if self._large is None else await self._large.off_load_one(text, path)


class _Told:
    """A fact that waits to be numbered and appended."""

    __slots__ = ("at", "fact", "future", "saga_id", "size")

    def __init__(self, saga_id: str, at: int, fact: e.Fact) -> None:
        self.saga_id, self.at, self.fact = saga_id, at, fact
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        texts = (getattr(fact, name) for name in fact.__struct_fields__)
        # At most three bytes a character, of those that count here.
        self.size = 200 + sum(3 * len(text) for text in texts if type(text) is str)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Lane:
    """One partition: what waits for it, and this recorder's writer id and counts there."""

    def __init__(
        self, log: EventLog, partition: int, saga_name: str, remembered: int, retry_seconds: float
    ) -> None:
        self._log, self._partition, self._saga_name = log, partition, saga_name
        self._remembered, self._retry_seconds = remembered, retry_seconds
        self._queue: deque[_Told] = deque()
        self._task: asyncio.Task[None] | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._writer = os.urandom(16)
        self._counts: dict[str, int] = {}

    async def submit(self, told: _Told) -> None:
        self._queue.append(told)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(
                self._work(), name=f"sagaz-es recorder {self._partition}"
            )
        await told.future

    async def drained(self) -> None:
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        # One append at a time: a saga's facts keep their order. What comes meanwhile gathers.
        while batch := self._take():
            try:
                await self._send(batch)
            except (
                BaseException
            ) as error:  # a defect, or the loop is closing: nobody waits for ever
                self._begin_anew()
                for told in batch:
                    told.fail(error if isinstance(error, Exception) else self._interrupted())
                if not isinstance(error, Exception):
                    raise

    def _take(self) -> list[_Told]:
        batch: list[_Told] = []
        size = 0
        while self._queue and len(batch) < MAX_BATCH_ENTRIES:
            told = self._queue[0]
            if batch and size + told.size > MAX_BATCH_BYTES:
                break
            self._queue.popleft()
            if not told.future.done():  # else its caller was cancelled in time
                batch.append(told)
                size += told.size
        return batch

    async def _send(self, batch: list[_Told]) -> None:
        before = {told.saga_id: self._counts.get(told.saga_id, 0) for told in batch}
        if len(self._counts) + len(before) > self._remembered and self._counts:
            self._begin_anew()
            before = dict.fromkeys(before, 0)
        events = [self._numbered(told) for told in batch]
        try:
            await append_again(self._log, self._partition, events, self._retry_seconds)
        except AppendRefused as error:
            self._counts.update(before)  # nothing stands: the numbers are free
            if len(batch) == 1:
                batch[0].fail(error)
                return
            for told in batch:  # only the one that cannot stand shall fail
                await self._send([told])
        except SagaError as error:
            self._begin_anew()
            for told in batch:
                told.fail(error)
        else:
            for told in batch:
                if not told.future.done():
                    told.future.set_result(None)

    def _interrupted(self) -> AppendUnknown:
        return AppendUnknown(self._partition, "the recorder was interrupted")

    def _numbered(self, told: _Told) -> e.Event:
        count = self._counts.get(told.saga_id, 0) + 1
        self._counts[told.saga_id] = count
        return e.Event(
            told.saga_id,
            self._saga_name,
            self._writer,
            e.RECORDED_EPOCH,
            count,
            told.at,
            told.fact,
        )


async def append_again(
    log: EventLog, partition: int, events: Sequence[e.Event], retry_seconds: float
) -> None:
    """Append, the identical events again while the outcome is unknown.

    Raises AppendRefused if nothing stands, AppendUnknown if that stays unknown.
    """
    clock = asyncio.get_running_loop().time
    until = clock() + retry_seconds
    delay, unknown = 0.05, False
    while True:
        try:
            await log.append(partition, events)
            return
        except AppendRefused as error:
            if not unknown:
                raise
            # What was refused now may stand from before.
            raise AppendUnknown(partition, f"tried again, it was refused: {error}") from error
        except (AppendUnknown, OSError) as error:
            unknown = True
            if clock() + delay > until:
                detail = f"still so after {retry_seconds:g} s: {error}"
                raise AppendUnknown(partition, detail) from error
            logger.warning("%s; appending the identical facts again", error)
        await asyncio.sleep(delay)
        delay = min(delay * 2, 1.0)


def _told(error: Failure) -> tuple[str, str, str]:
    """Type, message and traceback of what went wrong."""
    if error is None:
        return "", "", ""
    if isinstance(error, str):
        return "", _clean(error[:MAX_TRACE]), ""
    if not isinstance(error, BaseException):
        raise ConfigurationError(f"error: an exception or a text, not {error!r}")
    trace = "".join(traceback.format_exception(error)) if error.__traceback__ else ""
    return type(error).__name__, _clean(str(error)[:MAX_TRACE]), _clean(trace[-MAX_TRACE:])


def _us_of(field: str, when: Any) -> int:
    """Raises ConfigurationError for what is no time."""
    try:
        return to_us(datetime.fromisoformat(when) if isinstance(when, str) else when)
    except (ValueError, AttributeError):
        raise ConfigurationError(
            f"{field}: a datetime, or a text such as 2026-07-01T10:00:00Z (UTC if it has no zone), "
            f"not {when!r}"
        ) from None


def _said(field: str, text: Any) -> str:
    """Who or why, in words that can be encoded. Raises ConfigurationError."""
    if not isinstance(text, str):
        raise ConfigurationError(f"{field}: a text, not {text!r}")
    return check_text(field, _clean(text), empty=True, most=MAX_REASON_BYTES)


def _attempt(number: Any) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigurationError(f"attempt: a whole number, 1 or more, not {number!r}")
    return number


def _clean(text: str) -> str:
    """Text that can be encoded: an error message may hold anything."""
    return text.encode("utf-8", "replace").decode()


def _text(field: str, value: Any, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty):
        raise ConfigurationError(f"{field}: a text that is not empty, not {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"{field}: {value!r} is no valid Unicode text") from error
    return value
