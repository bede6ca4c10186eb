"""Every error raised on purpose, one class a cause, all under `SagaError`.

The constructor takes fields, not a sentence, so that an error stays picklable; `str()` says what,
where and what to do. No message holds a password or a context value.
"""

from __future__ import annotations

from collections.abc import Iterable


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


class SagaError(Exception):
    """The root of every error of this library."""


# --- defining a saga ---------------------------------------------------------------------------


class DefinitionError(SagaError, ValueError):
    """A saga class or a step is declared wrongly; raised when it is defined, before any step
    runs."""


class CompensationGraphError(SagaError):
    """The step graph is not one that can be run or undone."""


class CircularDependencyError(CompensationGraphError, DefinitionError):
    """Steps depend on each other in a circle. `cycle` names them, the first one again at the
    end."""

    def __init__(self, cycle: list[str]) -> None:
        super().__init__(cycle)
        self.cycle = cycle

    def __str__(self) -> str:
        return f"steps depend on each other in a circle: {' → '.join(self.cycle)}"


class SagaDependencyError(CompensationGraphError, DefinitionError):
    """A step depends on one that does not exist."""

    def __init__(self, step: str, missing: str, known: tuple[str, ...] = ()) -> None:
        super().__init__(step, missing, known)
        self.step, self.missing, self.known = step, missing, known

    def __str__(self) -> str:
        return (
            f"step {self.step!r} depends on {self.missing!r}, which does not exist; "
            f"steps: {_names(self.known)}"
        )


class DefinitionChanged(SagaError):
    """The code's step graph differs from the one recorded for an unfinished or replayed saga."""

    def __init__(
        self,
        saga_id: str,
        saga_name: str,
        differences: tuple[str, ...],
        recorded: str = "",
        code: str = "",
        declared: bool = False,
        obstacles: tuple[str, ...] = (),
    ) -> None:
        super().__init__(saga_id, saga_name, differences, recorded, code, declared, obstacles)
        self.saga_id, self.saga_name, self.differences = saga_id, saga_name, differences
        self.recorded, self.code = recorded, code  # fingerprints
        self.declared = declared  # the class says that it can, and it cannot
        self.obstacles = obstacles  # why it could not either if it said so

    def __str__(self) -> str:
        if not self.recorded:  # by services that did not say how its steps hang together
            return (
                f"saga {self.saga_id!r} was recorded by other services, and the code of "
                f"{self.saga_name!r} does not fit it: {'; '.join(self.differences)}; add what is "
                "missing to the class"
            )
        what = (
            f"saga {self.saga_id!r} was recorded with another definition of {self.saga_name!r} "
            f"({self.recorded}) than the code's ({self.code}): {'; '.join(self.differences)}; "
        )
        if self.declared:
            return (
                f"{what}no compatible_with can cover that: what has begun must stay as it was; run "
                "it with the code that fits"
            )
        if self.obstacles:
            return (
                f"{what}run it with the code that fits; compatible_with would not do, as what has "
                f"begun must stay as it was: {'; '.join(self.obstacles)}"
            )
        return (
            f"{what}run it with the code that fits, or, if this code may carry it on, declare "
            f'compatible_with = ("{self.recorded}",) on the class'
        )


class MigrationFailed(SagaError):
    """A class declares that it carries on a saga of an older definition, and its `migrate` failed.

    `error`: class and sentence of what it raised.
    """

    def __init__(self, saga_id: str, saga_name: str, error: str) -> None:
        super().__init__(saga_id, saga_name, error)
        self.saga_id, self.saga_name, self.error = saga_id, saga_name, error

    def __str__(self) -> str:
        return (
            f"saga {self.saga_id!r} cannot be carried on: migrate of {self.saga_name!r} failed "
            f"({self.error}); nothing was written"
        )


class ConfigurationError(SagaError, ValueError):
    """A setting is not usable. The message names the field and what is allowed."""


class UnknownSagaName(SagaError):
    """No class is registered under this saga name. `saga_id`: of one that is unfinished because of
    that, in the partition that the engine serves."""

    def __init__(self, saga_name: str, known: tuple[str, ...] = (), saga_id: str = "") -> None:
        super().__init__(saga_name, known, saga_id)
        self.saga_name, self.known, self.saga_id = saga_name, known, saga_id

    def __str__(self) -> str:
        what = f"registered under the name {self.saga_name!r}; registered: {_names(self.known)}"
        if self.saga_id:
            what = (
                f"saga {self.saga_id!r} is not carried on: the engine that serves it has no saga "
                f"class {what}"
            )
        else:
            what = f"no saga class is {what}"
        return (
            f"{what}; pass it with connect(sagas=[…]) or --app module:Class; "
            "services with different classes on one log each name a group (?group=name in its URL)"
        )


# --- values ------------------------------------------------------------------------------------


class UnstorableValue(SagaError, TypeError):
    """A value cannot be kept in the log. `path` leads to it, such as `order.items[3].price`."""

    def __init__(self, path: str, type_name: str, hint: str = "") -> None:
        super().__init__(path, type_name, hint)
        self.path, self.type_name, self.hint = path, type_name, hint

    def __str__(self) -> str:
        hint = self.hint or (
            "plain data, Decimal, datetime, date, UUID, bytes, set and tuple can be kept; live "
            "objects come in by connect(resources={…}) and are read as ctx.resources"
        )
        article = "an" if self.type_name[:1].lower() in "aeiou" else "a"
        return f"{self.path or 'the value'}: {article} {self.type_name} cannot be kept; {hint}"


class ContextMismatch(SagaError, ValueError):
    """A context is not of the type that its saga declares. `path` leads to what does not fit;
    `expected` and `found` are kinds, never values."""

    def __init__(self, saga_name: str, where: str, path: str, expected: str, found: str) -> None:
        super().__init__(saga_name, where, path, expected, found)
        self.saga_name, self.where, self.path = saga_name, where, path
        self.expected, self.found = expected, found

    def __str__(self) -> str:
        place = self.path or "the context"
        return (
            f"saga {self.saga_name!r}, {self.where}: {place}: found {self.found}, expected "
            f"{self.expected}"
        )


class MemoryFootprintError(SagaError):
    """A value is larger than the configured bound."""

    def __init__(self, key: str, size_bytes: int, limit_bytes: int, message: str = "") -> None:
        super().__init__(key, size_bytes, limit_bytes, message)
        self.key, self.size_bytes, self.limit_bytes = key, size_bytes, limit_bytes
        self.message = message

    def __str__(self) -> str:
        return self.message or (
            f"{self.key!r} takes {self.size_bytes} bytes, more than the limit of "
            f"{self.limit_bytes}; keep it elsewhere and its address here"
        )


class LargePayloadWarning(UserWarning):
    """A value is large enough to slow the log down."""


class CorruptBlob(SagaError):
    """Bytes that do not match the hash they are kept under."""

    def __init__(self, key: str, where: str) -> None:
        super().__init__(key, where)
        self.key, self.where = key, where

    def __str__(self) -> str:
        return f"blob {self.key} in {self.where} is damaged: its bytes do not match its hash"


class CorruptData(SagaError, ValueError):
    """Packed bytes that were changed or cut off."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class BlobMissing(SagaError):
    """A value that was kept outside the event is gone."""

    def __init__(self, key: str, where: str) -> None:
        super().__init__(key, where)
        self.key, self.where = key, where

    def __str__(self) -> str:
        return f"blob {self.key} is not in {self.where}; was the store changed or cleaned?"


# --- log and stores ----------------------------------------------------------------------------


class UnknownScheme(ConfigurationError):
    """A URL whose scheme is none of ours."""

    def __init__(self, what: str, scheme: str, known: tuple[str, ...]) -> None:
        super().__init__(what, scheme, known)
        self.what, self.scheme, self.known = what, scheme, known

    def __str__(self) -> str:
        return (
            f"unknown {self.what} URL scheme {self.scheme!r}; known: "
            f"{', '.join(name + '://' for name in self.known)}"
        )


class MissingDependencyError(SagaError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, feature: str | None = None, extra: str = "") -> None:
        super().__init__(package, feature, extra)
        self.package, self.feature, self.extra = package, feature, extra

    def __str__(self) -> str:
        need = f"{self.feature} needs" if self.feature else "this needs"
        what = f'"sagaz-es[{self.extra}]"' if self.extra else self.package
        return f"{need} the package {self.package!r}; install it with: pip install {what}"


class Unreachable(SagaError, ConnectionError):
    """A broker or database did not answer in time. `address` holds no password; `hint` says what to
    look at, as a question or an advice."""

    def __init__(
        self, what: str, address: str, detail: str = "", hint: str = "is it running?"
    ) -> None:
        super().__init__(what, address, detail, hint)
        self.what, self.address, self.detail, self.hint = what, address, detail, hint

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{self.what} at {self.address} cannot be reached{detail}{hint}"


class AccessRefused(Unreachable):
    """It cannot be used as it is named: a wrong user, password, database, directory or right. That
    does not pass by itself."""

    def __str__(self) -> str:
        return f"{self.what} at {self.address} cannot be used: {self.detail}; {self.hint}"


class AppendUnknown(SagaError, TimeoutError):
    """An append ran into its deadline: the records may stand in the log, now or later.

    Append the identical entries again, never renumbered ones.
    """

    def __init__(self, partition: int, detail: str = "") -> None:
        super().__init__(partition, detail)
        self.partition, self.detail = partition, detail

    def __str__(self) -> str:
        return f"outcome of an append to partition {self.partition} is unknown: {self.detail}"


class AppendRefused(SagaError):
    """The log took nothing of an append, and would not take it the next time either."""

    def __init__(self, partition: int, detail: str) -> None:
        super().__init__(partition, detail)
        self.partition, self.detail = partition, detail

    def __str__(self) -> str:
        return f"the log refused an append to partition {self.partition}: {self.detail}"


class LogFull(AppendRefused):
    """The log's disk is full; nothing of the append was kept. It can be tried again later."""


class LogForbidden(AppendRefused):
    """The log does not let this process write; nothing of the append was kept. Once somebody has
    given it the right, it can be tried again."""


class LogBusy(AppendRefused):
    """The log could not take an append in time; nothing of it was kept. Trying again may work."""


class LogTruncated(SagaError):
    """The log ends before a position that had been read: it lost its tail."""

    def __init__(self, partition: int, position: int, end: int) -> None:
        super().__init__(partition, position, end)
        self.partition, self.position, self.end = partition, position, end

    def __str__(self) -> str:
        return (
            f"partition {self.partition} ends at offset {self.end}, but {self.position} had been "
            "read: the log lost its tail, and what was acknowledged there is gone; restore it, or "
            "make the store anew from what is left with `sagaz-es projector rebuild`"
        )


class LogGone(Unreachable):
    """The log's topic was there, and no broker knows it any more. `address` holds no password."""

    def __init__(self, topic: str, address: str) -> None:
        super().__init__("Kafka", address, f"no broker knows topic {topic!r} any more")
        self.topic = topic

    def __reduce__(self) -> tuple[type[LogGone], tuple[str, str]]:
        return type(self), (self.topic, self.address)  # an OSError has its own way with arguments

    def __str__(self) -> str:
        return (
            f"topic {self.topic!r} is gone from Kafka at {self.address}: no broker knows it any "
            "more; it was deleted, and with it what its sagas have done. Stop the engines and "
            "restore it from a copy, or start them again: they make an empty one"
        )


class LogReplaced(SagaError):
    """The log is another one than the store was made from."""

    def __init__(self, partition: int, offset: int, expected: str, found: str) -> None:
        super().__init__(partition, offset, expected, found)
        self.partition, self.offset = partition, offset
        self.expected, self.found = expected, found

    def __str__(self) -> str:
        return (
            f"partition {self.partition} holds {self.found!r} at offset {self.offset}, where the "
            f"store was made from {self.expected!r}: this is another log; use a store of its own, "
            "or make this one anew with `sagaz-es projector rebuild`"
        )


class StoreOfAnotherLog(LogReplaced):
    """A store was made from another log than the one it is opened with.

    `belongs_to`, `log`: "<namespace>/<when it was created, in µs since 1970>".
    """

    def __init__(self, store: str, belongs_to: str, where: str, log: str) -> None:
        Exception.__init__(self, store, belongs_to, where, log)
        self.store, self.belongs_to, self.where, self.log = store, belongs_to, where, log

    @property
    def same_namespace(self) -> bool:
        """A log of the same namespace was made anew."""
        return self.belongs_to.rpartition("/")[0] == self.log.rpartition("/")[0]

    def __str__(self) -> str:
        namespace = self.belongs_to.rpartition("/")[0]
        if self.same_namespace:
            return (
                f"the store {self.store} belongs to an earlier log {namespace!r}, not to "
                f"{self.where} as it is now, which is another log: use another store, or make this "
                "one anew with `sagaz-es projector rebuild`"
            )
        return (
            f"the store {self.store} belongs to the log {namespace!r}, and {self.where} is another "
            "log: give each log a store of its own, in another database or file, or in another "
            "schema (postgresql://…?schema=name)"
        )


class HistoryGone(SagaError):
    """A position or time before the first one that is still kept."""

    def __init__(self, what: str, asked: str, exists_from: str) -> None:
        super().__init__(what, asked, exists_from)
        self.what, self.asked, self.exists_from = what, asked, exists_from

    def __str__(self) -> str:
        return (
            f"history of {self.what} at {self.asked} is gone; it exists from {self.exists_from} on"
        )


class UnsuitableTopic(SagaError):
    """A topic that would lose history or move keys."""

    def __init__(self, topic: str, problems: tuple[str, ...]) -> None:
        super().__init__(topic, problems)
        self.topic, self.problems = topic, problems

    def __str__(self) -> str:
        return (
            f"topic {self.topic!r} cannot hold sagas: {'; '.join(self.problems)}; "
            "see `sagaz-es doctor`"
        )


class UndecodableRecord(SagaError, ValueError):
    """Bytes that are no record of ours, or a damaged one."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class UnknownRecordType(UndecodableRecord):
    """A record whose schema is not known here: of a newer version, or not ours."""


class RegistryRefused(SagaError):
    """A schema registry answered, but not with what was asked for."""

    def __init__(self, address: str, what: str, detail: str) -> None:
        super().__init__(address, what, detail)
        self.address, self.what, self.detail = address, what, detail

    def __str__(self) -> str:
        return f"the schema registry at {self.address} refused {self.what}: {self.detail}"


class CheckpointMoved(SagaError):
    """Another projector of the same partition committed first; nothing of this batch was kept."""

    def __init__(self, partition: int, expected: int, found: int) -> None:
        super().__init__(partition, expected, found)
        self.partition, self.expected, self.found = partition, expected, found

    def __str__(self) -> str:
        return (
            f"the checkpoint of partition {self.partition} is at {self.found}, not at "
            f"{self.expected}: another projector is at work; this one steps back"
        )


class StorageFailed(SagaError):
    """A store answered with an error. `detail` holds no password."""

    def __init__(self, where: str, detail: str) -> None:
        super().__init__(where, detail)
        self.where, self.detail = where, detail

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"


# --- asking ------------------------------------------------------------------------------------


class NotFound(SagaError, LookupError):
    """Something that was asked for by its name or id does not exist."""


class SagaNotFound(NotFound):
    """No saga of this id."""

    def __init__(self, saga_id: str, where: str = "") -> None:
        super().__init__(saga_id, where)
        self.saga_id, self.where = saga_id, where

    def __str__(self) -> str:
        where = f" in {self.where}" if self.where else ""
        return f"there is no saga {self.saga_id!r}{where}; see `sagaz-es saga list`"


class StepNotFound(NotFound):
    """The saga has no step of this name, or none of which this holds. `known`: those of which it
    does, as `which` calls them."""

    def __init__(
        self,
        saga_id: str,
        step: str,
        known: tuple[str, ...],
        why: str = "",
        which: str = "its steps",
    ) -> None:
        super().__init__(saga_id, step, known, why, which)
        self.saga_id, self.step, self.known, self.why = saga_id, step, known, why
        self.which = which

    def __str__(self) -> str:
        why = self.why or "has no step"
        return f"saga {self.saga_id!r} {why} {self.step!r}; {self.which}: {_names(self.known)}"


class StateNotFound(NotFound):
    """The saga did not exist yet at that moment, or has not come as far (`last`: its newest
    sequence)."""

    def __init__(self, saga_id: str, asked: str, began: str, last: int = 0) -> None:
        super().__init__(saga_id, asked, began, last)
        self.saga_id, self.asked, self.began, self.last = saga_id, asked, began, last

    def __str__(self) -> str:
        if self.last:
            return f"saga {self.saga_id!r} has no {self.asked} yet; its last is {self.last}"
        return f"saga {self.saga_id!r} did not exist at {self.asked}; it began at {self.began}"


class RequestRefusedError(SagaError):
    """What was asked for is refused; nothing happened."""


class SagaEnded(RequestRefusedError):
    """The saga has ended; what was asked needs one that runs."""

    def __init__(self, saga_id: str, status: str, what: str) -> None:
        super().__init__(saga_id, status, what)
        self.saga_id, self.status, self.what = saga_id, status, what

    def __str__(self) -> str:
        return f"saga {self.saga_id!r} is {self.status}: it cannot be {self.what}"


class SagaStillRunning(RequestRefusedError):
    """The saga, or the head of its family, is still executing."""

    def __init__(self, saga_id: str, status: str, asked: str = "") -> None:
        super().__init__(saga_id, status, asked)
        self.saga_id, self.status, self.asked = saga_id, status, asked

    def __str__(self) -> str:
        if self.asked and self.asked != self.saga_id:
            return (
                f"saga {self.asked!r} cannot be replayed now: its newest branch "
                f"{self.saga_id!r} is still {self.status}; wait until it ends"
            )
        return (
            f"saga {self.saga_id!r} is still {self.status}; wait until it ends, or cancel it "
            "(its plan can be shown)"
        )


class SagaIsRecorded(RequestRefusedError):
    """Other services record the saga; no engine runs it, so none can do this with it."""

    def __init__(self, saga_id: str, what: str) -> None:
        super().__init__(saga_id, what)
        self.saga_id, self.what = saga_id, what

    def __str__(self) -> str:
        return (
            f"saga {self.saga_id!r} is recorded by other services, no engine runs it: it cannot be "
            f"{self.what}"
        )


class RecordedStillRunning(SagaIsRecorded):
    """A recorded saga of which nobody has recorded an end is not replayed."""

    def __init__(self, saga_id: str) -> None:
        super().__init__(saga_id, "replayed")
        self.args = (saga_id,)

    def __str__(self) -> str:
        return (
            f"saga {self.saga_id!r} is recorded by other services, and none has recorded that it "
            "has ended, so it cannot be replayed (its plan can be shown); record its end with "
            "SagaRecorder, or import its file again with --ends"
        )


class SagaSetAside(RequestRefusedError):
    """A damaged record stands where a fact of the saga should: what follows cannot be folded."""

    def __init__(self, saga_id: str, partition: int, offset: int, sequence: int = 0) -> None:
        super().__init__(saga_id, partition, offset, sequence)
        self.saga_id, self.partition, self.offset = saga_id, partition, offset
        self.sequence = sequence  # up to where its past is known

    def __str__(self) -> str:
        known = f"; its past is known up to sequence {self.sequence}" if self.sequence else ""
        return (
            f"saga {self.saga_id!r} is set aside: the record at partition {self.partition}, offset "
            f"{self.offset} cannot be read, and later events depend on it{known}; see "
            "`sagaz-es doctor`"
        )


class PivotPassed(RequestRefusedError):
    """A saga was asked to go back after its pivot. `status`: how it stood, if it did not run."""

    def __init__(self, saga_id: str, pivot: str, status: str = "") -> None:
        super().__init__(saga_id, pivot, status)
        self.saga_id, self.pivot, self.status = saga_id, pivot, status

    def __str__(self) -> str:
        how = "let it finish, or see"
        if self.status == "forward_recovery":
            how = f"decide how it goes on: `sagaz-es saga recover {self.saga_id}`, or see"
        return (
            f"saga {self.saga_id!r} cannot go back: its pivot {self.pivot!r} has completed; {how} "
            f"`sagaz-es replay plan {self.saga_id}`"
        )


class PivotUndecided(RequestRefusedError):
    """A saga was asked to go back while nobody knows whether its pivot has happened, and only a
    person can find that out, or let the pivot be tried again."""

    def __init__(self, saga_id: str, pivot: str) -> None:
        super().__init__(saga_id, pivot)
        self.saga_id, self.pivot = saga_id, pivot

    def __str__(self) -> str:
        return (
            f"saga {self.saga_id!r} cannot go back yet: its pivot {self.pivot!r} may have "
            f"happened; see `sagaz-es saga resolve {self.saga_id} --step {self.pivot}`, or resume "
            "the saga if it is paused"
        )


class SagaIdTaken(RequestRefusedError):
    """The id that a saga was to be started with is that of a saga of another name."""

    def __init__(self, saga_id: str, saga_name: str, other: str) -> None:
        super().__init__(saga_id, saga_name, other)
        self.saga_id, self.saga_name = saga_id, saga_name
        self.other = other  # the name of the saga that has the id

    def __str__(self) -> str:
        return (
            f"{self.saga_name!r} cannot be started as {self.saga_id!r}: this is the id of a saga "
            f"of {self.other!r}; give it another id"
        )


class ChildIdTaken(RequestRefusedError):
    """The id that a child would have is that of a saga which was not started as this child."""

    def __init__(self, saga_id: str, parent: str) -> None:
        super().__init__(saga_id, parent)
        self.saga_id, self.parent = saga_id, parent

    def __str__(self) -> str:
        return (
            f"a saga {self.saga_id!r} exists that was not started as a child of {self.parent!r}; "
            "leave ids of this form to children"
        )


class ChildSagaFailed(SagaError):
    """A child did not complete, or could not be taken back. `why` names its step and its error."""

    def __init__(self, saga_id: str, status: str, why: str = "") -> None:
        super().__init__(saga_id, status, why)
        self.saga_id, self.status, self.why = saga_id, status, why

    def __str__(self) -> str:
        why = f": {self.why}" if self.why else ""
        return f"its saga {self.saga_id!r} is {self.status}{why}"


class ReplayError(SagaError):
    """A replay could not be prepared; nothing has run."""


class PlanBlocked(RequestRefusedError, ReplayError):
    """A plan holds steps that would have to be undone and cannot be. `reasons`: of each, why."""

    def __init__(self, saga_id: str, steps: tuple[str, ...], reasons: tuple[str, ...] = ()) -> None:
        super().__init__(saga_id, steps, reasons)
        self.saga_id, self.steps, self.reasons = saga_id, steps, reasons

    def __str__(self) -> str:
        reasons = self.reasons or ("its effect stands and cannot be undone",) * len(self.steps)
        steps = [f"step {s!r} ({why})" for s, why in zip(self.steps, reasons, strict=True)]
        more = f" and {len(steps) - 5} more" if len(steps) > 5 else ""
        options = " ".join(f"--allow {step}" for step in self.steps)
        return (
            f"the replay of saga {self.saga_id!r} is blocked by {', '.join(steps[:5])}{more}. "
            f"If it may happen again, allow it by name: allow={list(self.steps)!r} or {options}. "
            "If not, it has to be reused: replay from a step that it does not depend on "
            "(from_step or --from-step), and leave what it read as it was (context_override or "
            "--override)"
        )


class PlanOutdated(RequestRefusedError, ReplayError):
    """The log has moved since a plan was made, or another replay won."""

    def __init__(self, saga_id: str, detail: str) -> None:
        super().__init__(saga_id, detail)
        self.saga_id, self.detail = saga_id, detail

    def __str__(self) -> str:
        return (
            f"the plan for saga {self.saga_id!r} is out of date: {self.detail}; make a new one "
            "with `sagaz-es replay plan`"
        )


class UndoRefused(RequestRefusedError):
    """A replay cannot be undone."""

    def __init__(self, replay_id: str, reason: str, steps: tuple[str, ...] = ()) -> None:
        super().__init__(replay_id, reason, steps)
        self.replay_id, self.reason, self.steps = replay_id, reason, steps

    def __str__(self) -> str:
        steps = f": {_names(self.steps)}" if self.steps else ""
        return f"replay {self.replay_id!r} cannot be undone, {self.reason}{steps}"


class InvalidOverride(SagaError, ValueError):
    """A context override that is not usable; `where` shows the place."""

    def __init__(self, text: str, where: str) -> None:
        super().__init__(text, where)
        self.text, self.where = text, where

    def __str__(self) -> str:
        return (
            f"the override {self.text!r} is not usable: {self.where}; write a JSON object such as "
            """'{"token": "new"}', or key=value"""
        )


class EngineClosed(SagaError):
    """The engine was closed before the answer came; the saga goes on when an engine starts."""

    def __init__(self, saga_id: str = "", again: bool = False) -> None:
        super().__init__(saga_id, again)
        self.saga_id, self.again = saga_id, again  # it was to be opened again

    def __str__(self) -> str:
        if self.again:
            return "this engine was closed and is not opened again; make another with connect(…)"
        what = f"saga {self.saga_id!r} is unfinished and " if self.saga_id else "it "
        return f"the engine was closed; {what}goes on when an engine of this log starts"


class LostOwnership(SagaError):
    """Another engine took the saga over; this one stops working on it."""

    def __init__(self, saga_id: str) -> None:
        super().__init__(saga_id)
        self.saga_id = saga_id

    def __str__(self) -> str:
        return f"saga {self.saga_id!r} was taken over by another engine"


class SagaStopped(SagaError):
    """A saga cannot be carried on by the engine that serves it, as something failed that is none of
    its steps. `error`: what that was."""

    def __init__(self, saga_id: str, error: str) -> None:
        super().__init__(saga_id, error)
        self.saga_id, self.error = saga_id, error

    def __str__(self) -> str:
        return (
            f"saga {self.saga_id!r} has stopped, unfinished, in the engine that serves it: "
            f"{self.error}; it goes on when another engine takes it over, or this one is restarted"
        )


class HandingOver(LostOwnership):
    """The saga's partition is being handed over; nothing happened, it can be asked for again."""


# --- running -----------------------------------------------------------------------------------


class SagaStepError(SagaError):
    """A step failed, and its own exception is not at hand (another process ran it).

    Steps may raise it, too, with a sentence alone: `SagaStepError("out of stock")`.
    """

    def __init__(self, step: str = "", error_type: str = "", message: str = "") -> None:
        super().__init__(step, error_type, message)
        self.step, self.error_type, self.message = step, error_type, message

    def __str__(self) -> str:
        if not self.error_type:
            return self.step
        return f"step {self.step!r} failed with {self.error_type}: {self.message}"


class SagaCompensationError(SagaError):
    """A compensation failed for good. Compensations may raise it, with a sentence alone."""

    def __init__(self, step: str = "", error_type: str = "", message: str = "") -> None:
        super().__init__(step, error_type, message)
        self.step, self.error_type, self.message = step, error_type, message

    def __str__(self) -> str:
        return f"{self.step}: {self.error_type}: {self.message}" if self.error_type else self.step


class ResourceMissing(SagaError, KeyError):
    """A step asked for a resource that `connect` was not given."""

    def __init__(self, name: object, known: tuple[str, ...]) -> None:
        super().__init__(name, known)
        self.name, self.known = name, known

    def __str__(self) -> str:
        return (
            f"there is no resource {self.name!r}; there is: {_names(self.known)}; pass it with "
            "connect(resources={…}), or `--resources module:name`"
        )


class SagaTimeoutError(SagaError, TimeoutError):
    """A step or compensation was slower than its time limit; or a saga's deadline has passed. Then
    its `__cause__` is the error of the step in which it struck, if it did in one.

    Steps may raise it, too, with a sentence alone.
    """

    def __init__(self, step: str = "", timeout_seconds: float = 0.0, what: str = "step") -> None:
        super().__init__(step, timeout_seconds, what)
        self.step, self.timeout_seconds, self.what = step, timeout_seconds, what

    def __str__(self) -> str:
        if not self.timeout_seconds:
            return self.step
        return f"{self.what} {self.step!r} took longer than {self.timeout_seconds:g} s"


class SagaExecutionError(SagaError):
    """A saga could not be carried on."""


class ForcedFailure(SagaError):
    """A replay made this step fail on purpose; its action was not called."""

    def __init__(self, step: str) -> None:
        super().__init__(step)
        self.step = step

    def __str__(self) -> str:
        return f"step {self.step!r} was made to fail by the replay (force_failure)"


# --- replay and snapshots, under the seed's names -----------------------------------------------


class SnapshotNotFoundError(ReplayError, NotFound):
    """No saga, or no step, to replay from."""

    def __init__(self, saga_id: str, step: str, why: str = "") -> None:
        super().__init__(saga_id, step, why)
        self.saga_id, self.step, self.why = saga_id, step, why

    def __str__(self) -> str:
        why = f": {self.why}" if self.why else ""
        return f"saga {self.saga_id!r} cannot be replayed from step {self.step!r}{why}"


class SnapshotCaptureError(SagaError):
    """A snapshot could not be kept."""


class IdempotencyKeyRequiredError(SagaError):
    """A trigger needs an idempotency key. Programs may raise it for events of theirs."""

    def __init__(
        self, saga_name: str = "", source: str = "", detected_fields: Iterable[str] = ()
    ) -> None:
        fields = tuple(detected_fields)
        super().__init__(saga_name, source, fields)
        self.saga_name, self.source, self.detected_fields = saga_name, source, fields

    def __str__(self) -> str:
        return (
            f"saga {self.saga_name!r}: its trigger of {self.source!r} needs an idempotency_key; "
            f"the event has {_names(self.detected_fields)}"
        )


class IdempotencyKeyMissingInPayloadError(SagaError):
    """An event lacks the field that its trigger's idempotency key is made of, or it is empty."""

    def __init__(
        self,
        saga_name: str = "",
        source: str = "",
        key_name: str = "",
        payload_keys: Iterable[str] = (),
    ) -> None:
        keys = tuple(payload_keys)
        super().__init__(saga_name, source, key_name, keys)
        self.saga_name, self.source, self.key_name = saga_name, source, key_name
        self.payload_keys = keys

    def __str__(self) -> str:
        return (
            f"saga {self.saga_name!r}: its idempotency_key needs {self.key_name!r}, which the "
            f"event of {self.source!r} lacks or has empty; there is: {_names(self.payload_keys)}"
        )
