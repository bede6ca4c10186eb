"""A payment provider refuses for a while; the orders it cost are looked into, replayed and proved.

    make demo

It runs on one SQLite file, `sagaz-es-demo.db` in the current directory, which is begun anew each
time. `--db FILE` takes another file and adds to it; SAGAZ_ES_LOG=kafka://… together with
SAGAZ_ES_STORE=postgresql://… takes real servers. Then the orders of each run get ids of their own.

The providers (stock, payment, parcels, mail) keep a ledger of what they really did, in a file that
the engine knows nothing of. What is claimed at the end is computed from that ledger. Exit status: 0
if it holds, 1 with a list of what does not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from shutil import which
from typing import Any, TypeVar

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from sagaz_es import (
    Engine,
    ReplayPlan,
    ReplayResult,
    Saga,
    SagaError,
    SagaResult,
    action,
    compensate,
    connect,
)
from sagaz_es.connect import LOG_VARIABLE, STORE_VARIABLE
from sagaz_es.ports import ArchivedEvent
from sagaz_es.reading.time_travel import HistoricalState

Given = TypeVar("Given")
Got = TypeVar("Got")

DEFAULT_FILE = Path("sagaz-es-demo.db")
COMMAND = str(Path(sys.executable).with_name("sagaz-es"))
AT_ONCE = 200
GOOD_TOKEN, EXPIRED_TOKEN = "tok-2026", "tok-2025"
ACTOR, REASON = "olga", "payment token renewed, OPS-311"


# --- the saga -------------------------------------------------------------------------------------


class OrderSaga(Saga):
    """Reserve, charge, ship, notify. What was done is undone in reverse when a step fails for good.

    `ctx.idempotency_key` names one effect: it is the same in every attempt of a step and another
    one in a replay, where what was undone has to happen again. A mail cannot be undone. So it comes
    last, and its key is the order's: however often an order is replayed, the customer gets one.
    """

    saga_name = "order"

    @action("reserve")
    async def reserve(self, ctx: Any) -> dict[str, str]:
        shop: Providers = ctx.resources["providers"]
        return {"reservation": await shop.reserve(ctx["order"], ctx.idempotency_key)}

    @compensate("reserve")
    async def release(self, result: Any, ctx: Any) -> None:
        shop: Providers = ctx.resources["providers"]
        await shop.release(ctx["order"], ctx.idempotency_key, result["reservation"])

    @action("charge", max_retries=2, retry_delay_seconds=0.02)
    async def charge(self, ctx: Any) -> dict[str, str]:
        shop: Providers = ctx.resources["providers"]
        key = ctx.idempotency_key
        return {"payment": await shop.charge(ctx["order"], key, ctx["token"], ctx["amount"])}

    @compensate("charge")
    async def refund(self, result: Any, ctx: Any) -> None:
        shop: Providers = ctx.resources["providers"]
        await shop.refund(ctx["order"], ctx.idempotency_key, result["payment"])

    @action("ship")
    async def ship(self, ctx: Any) -> dict[str, str]:
        shop: Providers = ctx.resources["providers"]
        return {"parcel": await shop.ship(ctx["order"], ctx.idempotency_key)}

    @compensate("ship")
    async def recall(self, result: Any, ctx: Any) -> None:
        shop: Providers = ctx.resources["providers"]
        await shop.recall(ctx["order"], ctx.idempotency_key, result["parcel"])

    @action("notify")
    async def notify(self, ctx: Any) -> None:
        shop: Providers = ctx.resources["providers"]
        await shop.mail(ctx["order"], f"{ctx['order']}/mail", ctx["parcel"])


# --- the world outside ----------------------------------------------------------------------------


class TokenExpired(Exception):
    """The payment provider does not know this token any more."""


class AnswerLost(ConnectionError):
    """The provider did it, but its answer did not arrive."""


class Providers:
    """Stock, payment, parcels and mail of a shop, with one ledger of what they really did.

    Like real ones they honour idempotency keys: the same key again is the same effect, not a second
    one. Of every 25th order the payment provider's first answer is lost after the money was taken.
    """

    def __init__(self, ledger: Path) -> None:
        # Autocommit: every effect is in the file when the call returns.
        self._ledger = sqlite3.connect(ledger, isolation_level=None)
        self._ledger.execute("PRAGMA journal_mode = WAL")
        self._ledger.execute("PRAGMA synchronous = OFF")
        self._ledger.execute(
            "CREATE TABLE IF NOT EXISTS ledger (number INTEGER PRIMARY KEY, at REAL, kind TEXT,"
            " order_id TEXT, key TEXT UNIQUE, calls INTEGER DEFAULT 1)"
        )

    def close(self) -> None:
        self._ledger.close()

    async def _do(self, kind: str, order: str, key: str) -> tuple[str, int]:
        """Enter an effect once for its key; its name, and how often it has been asked for."""
        await asyncio.sleep(0.005)  # the network
        row = self._ledger.execute(
            "INSERT INTO ledger (at, kind, order_id, key) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET calls = calls + 1 RETURNING number, calls",
            (time.time(), kind, order, key),
        ).fetchone()
        return f"{kind}-{row[0]}", row[1]

    async def reserve(self, order: str, key: str) -> str:
        return (await self._do("reserve", order, key))[0]

    async def release(self, order: str, key: str, reservation: str) -> None:
        await self._do("release", order, key)

    async def charge(self, order: str, key: str, token: str, amount: Decimal) -> str:
        if token != GOOD_TOKEN:
            raise TokenExpired(f"token {token!r} has expired")
        payment, calls = await self._do("charge", order, key)
        if calls == 1 and int(order.rpartition("-")[2]) % 25 == 0:
            raise AnswerLost("connection reset by the payment provider")
        return payment

    async def refund(self, order: str, key: str, payment: str) -> None:
        await self._do("refund", order, key)

    async def ship(self, order: str, key: str) -> str:
        return (await self._do("ship", order, key))[0]

    async def recall(self, order: str, key: str, parcel: str) -> None:
        await self._do("recall", order, key)

    async def mail(self, order: str, key: str, parcel: str) -> None:
        await self._do("mail", order, key)


# --- the proof ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One effect in the providers' ledger, in the order in which they happened."""

    kind: str
    order: str
    calls: int


def read_ledger(file: Path, orders: Sequence[str]) -> list[Entry]:
    """What the providers did for these orders, from their file."""
    with sqlite3.connect(file) as ledger:
        rows = ledger.execute("SELECT kind, order_id, calls FROM ledger ORDER BY number").fetchall()
    ledger.close()
    wanted = frozenset(orders)
    return [Entry(*row) for row in rows if row[1] in wanted]


def violations(entries: Sequence[Entry], orders: Sequence[str]) -> list[str]:
    """What is not as it should be after everything was replayed; empty is the proof."""
    found: list[str] = []
    done: Mapping[str, Counter[str]] = defaultdict(Counter)
    for entry in entries:
        count = done[entry.order]
        if entry.kind == "ship" and count["charge"] - count["refund"] != 1:
            found.append(f"{entry.order}: shipped unpaid")
        count[entry.kind] += 1
    for order in orders:
        count = done[order]
        for what, times in (
            ("charged", count["charge"]),
            ("charged, refunds taken off,", count["charge"] - count["refund"]),
            ("reserved, releases taken off,", count["reserve"] - count["release"]),
            ("shipped, recalls taken off,", count["ship"] - count["recall"]),
            ("notified", count["mail"]),
        ):
            if times != 1:
                found.append(f"{order}: {what} {times} times instead of once")
    return found


# --- the story ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """An order of the shop, number 1, 2, 3 …; its id names it here and in the ledger."""

    id: str
    number: int
    token: str

    @property
    def context(self) -> dict[str, Any]:
        """What its saga is started with."""
        amount = Decimal(990 + self.number * 70 % 9000).scaleb(-2)
        return {"order": self.id, "amount": amount, "token": self.token}


@dataclass(frozen=True)
class Run:
    """One run of the story: where it goes, with which orders."""

    log: str | None  # None: from the environment
    ledger: Path
    orders: tuple[Order, ...]

    @property
    def ids(self) -> list[str]:
        return [order.id for order in self.orders]

    def entries(self) -> list[Entry]:
        """What the providers have done for these orders up to now."""
        return read_ledger(self.ledger, self.ids)


@dataclass(frozen=True)
class Told:
    """What is left to say at the end."""

    wrong: list[str]
    replays: list[ReplayResult]


async def tell(engine: Engine, run: Run, console: Console) -> Told:
    """The story, from the orders to the proof."""
    heading(console, 1, f"{len(run.orders):,} orders run as sagas, up to {AT_ONCE} at once")
    outage = [order.number for order in run.orders if order.token != GOOD_TOKEN]
    if outage:
        console.print(f"  Orders {outage[0]:,} to {outage[-1]:,} send a token that has expired.")

    async def run_order(order: Order) -> SagaResult:
        return await engine.run(OrderSaga, order.context, saga_id=order.id)

    results = await each("orders", run.orders, run_order, console)
    failed = [result.saga_id for result in results if not result.success]
    print_outcomes(results, console)
    after_outage = run.entries()
    replays: list[ReplayResult] = []
    wrong: list[str] = []

    if failed:
        heading(console, 2, f"{failed[0]} just before its charge")
        history = await engine.history(failed[0])
        print_state(await history.state_at("step:charge"), console)

        heading(console, 3, f"What a replay of {failed[0]} with the new token would do")
        corrected = {"token": GOOD_TOKEN}
        plan = await engine.plan_replay(failed[0], "charge", context_override=corrected)
        print_plan(plan, console)

        heading(console, 4, f"The replay of all {len(failed):,} failed orders")
        await caught_up(engine)
        originals = await streams(engine, failed)

        async def replay_order(saga_id: str) -> ReplayResult:
            plan = await engine.plan_replay(saga_id, "charge", context_override=corrected)
            return await engine.replay(plan, actor=ACTOR, reason=REASON)

        replays = await each("replays", failed, replay_order, console)
        print_replays(replays, console)
        await caught_up(engine)
        wrong = touched(originals, await streams(engine, failed))

    heading(console, 5, "The proof, from the providers' ledger")
    at_the_end = run.entries()
    print_ledger(after_outage, at_the_end, console)
    wrong = violations(at_the_end, run.ids) + wrong
    print_proof(wrong, at_the_end, run, console)
    return Told(wrong, replays)


async def each(
    what: str,
    items: Sequence[Given],
    work: Callable[[Given], Awaitable[Got]],
    console: Console,
) -> list[Got]:
    """`work` on every item, a bounded number at once, under a progress bar; in the items' order."""
    gate = asyncio.Semaphore(AT_ONCE)
    columns = (TextColumn("  {task.description:8}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(what, total=len(items))

        async def one(item: Given) -> Got:
            async with gate:
                got = await work(item)
            progress.advance(task)
            return got

        return await asyncio.gather(*(one(item) for item in items))


async def streams(engine: Engine, ids: Sequence[str]) -> dict[str, list[ArchivedEvent]]:
    """All events of these sagas, as the log has them now."""
    return {saga_id: await (await engine.history(saga_id)).events() for saga_id in ids}


def touched(
    before: Mapping[str, list[ArchivedEvent]], after: Mapping[str, list[ArchivedEvent]]
) -> list[str]:
    """Originals whose stream differs from before by more than the fact that they were replayed."""
    found = []
    for saga_id, events in before.items():
        kept, added = after[saga_id][: len(events)], after[saga_id][len(events) :]
        if kept != events:
            found.append(f"{saga_id}: its history was changed")
        elif [type(entry.event.fact).__name__ for entry in added] != ["ReplayBranched"]:
            found.append(f"{saga_id}: {len(added)} events were added to its history")
    return found


async def caught_up(engine: Engine) -> None:
    """Wait for the projector, so that asking for many histories reads the store, not the log."""
    store = engine.store
    assert store is not None
    deadline = time.monotonic() + 60
    for partition in range(engine.log.partitions):
        end = (await engine.log.bounds(partition)).end
        while (at := await store.checkpoint(partition)) is None or at.next_offset < end:
            if time.monotonic() > deadline:
                raise TimeoutError("the projector is still behind after 60 s")
            await asyncio.sleep(0.05)


# --- what it looks like ---------------------------------------------------------------------------


def heading(console: Console, number: int, text: str) -> None:
    console.print(f"\n[bold]{number}  {text}[/bold]")


def grid(console: Console, *columns: str, rows: Iterable[Sequence[str]]) -> None:
    """A table; a column whose name begins with ">" is one of numbers."""
    table = Table(box=None, show_header=any(columns), padding=(0, 3, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def print_outcomes(results: Sequence[SagaResult], console: Console) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    for result in results:
        failed = [step for step, status in result.steps.items() if status == "failed"]
        because = f"{failed[0]}: {result.error}" if failed else ""
        counts[str(result.status), because] += 1
    rows = [(status, f"{count:,}", error) for (status, error), count in counts.most_common()]
    grid(console, "sagas ended", ">orders", "because", rows=rows)


def print_state(state: HistoricalState, console: Console) -> None:
    source = state.source
    how = f"{source.events_folded} events"
    if source.snapshot_sequence is not None:
        how = f"the snapshot at {source.snapshot_sequence}, then {how}"
    rows = [
        ("status", state.status),
        ("since", f"{state.timestamp:%Y-%m-%d %H:%M:%S.%f} UTC"),
        ("sequence", f"{state.sequence}, folded from {how}"),
        ("done", ", ".join(state.completed_steps)),
        *((f"context.{key}", str(value)) for key, value in state.context.items()),
    ]
    grid(console, "", "", rows=rows)


def print_plan(plan: ReplayPlan, console: Console) -> None:
    rows = [(step.step, str(step.verdict), step.reason) for step in plan.steps]
    grid(console, "step", "verdict", "reason", rows=rows)


def print_replays(replays: Sequence[ReplayResult], console: Console) -> None:
    counts = Counter((str(r.status), r.error_message or "") for r in replays)
    rows = [(status, f"{count:,}", error) for (status, error), count in counts.most_common()]
    grid(console, "replays ended", ">orders", "because", rows=rows)
    console.print(f"  Recorded with each: {ACTOR}, {REASON!r}.")


def print_ledger(first: Sequence[Entry], last: Sequence[Entry], console: Console) -> None:
    before, after = (Counter(entry.kind for entry in entries) for entries in (first, last))
    kinds = ("reserve", "release", "charge", "refund", "ship", "recall", "mail")
    rows = [(kind, f"{before[kind]:,}", f"{after[kind]:,}") for kind in kinds]
    grid(console, "effect", ">before the replays", ">after them", rows=rows)


def print_proof(wrong: Sequence[str], last: Sequence[Entry], run: Run, console: Console) -> None:
    if wrong:
        console.print(f"\n  [bold red]It does not hold, {len(wrong):,} times:[/bold red]")
        for line in wrong:
            console.print(Text(f"  - {line}"), soft_wrap=True)
        return
    again = sum(entry.calls - 1 for entry in last)
    console.print()
    for line in (
        f"each of {len(run.orders):,} orders was charged exactly once",
        "each has its goods reserved once, was shipped once, and got one mail",
        f"{again:,} effects were asked for again after a lost answer; none was doubled",
        "nothing was shipped before it was paid",
        "the originals' histories gained the fact of their replay, and nothing else",
    ):
        console.print(Text.assemble(("  ✓ ", "green"), line))


def print_commands(run: Run, told: Told, console: Console) -> None:
    """What to type next; each works on what this run leaves behind."""
    command = "sagaz-es" if which("sagaz-es") else min(os.path.relpath(COMMAND), COMMAND, key=len)
    lines = [f"{command} saga list --limit 5"]
    if told.replays:
        original, branch = told.replays[0].original_saga_id, told.replays[0].new_saga_id
        lines = [
            f"{command} saga list --status rolled_back --limit 5",
            f"{command} replay time-travel {original} --at step:charge",
            f"{command} replay list-changes {original}",
            f"{command} saga show {branch}",
        ]
    lines.append(f"{command} replay plan {run.ids[0]} --from-step charge")
    if run.log is not None:
        lines.insert(0, f"export SAGAZ_ES_LOG={run.log}")
    console.print("\n[bold]Look further[/bold]")
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)


# --- the program ----------------------------------------------------------------------------------


def main() -> int:
    options = read_options()
    console = Console(highlight=False)
    run = prepare(options)
    console.print(f"[bold]{__doc__.splitlines()[0]}[/bold]")
    started = time.monotonic()
    try:
        told = asyncio.run(live(run, console))
    except (SagaError, TimeoutError) as error:
        sys.exit(f"{error}")
    print_commands(run, told, console)
    console.print(f"\n{time.monotonic() - started:.0f} seconds.")
    return 1 if told.wrong else 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=1500, metavar="N", help="default: 1500")
    for end, share in (("from", "40"), ("to", "48")):
        parser.add_argument(
            f"--outage-{end}",
            type=int,
            metavar="N",
            help=f"{end} which order on the token is an expired one; default: at {share} %%",
        )
    parser.add_argument("--db", type=Path, metavar="FILE", help="see above; default: a new one")
    options = parser.parse_args()
    if options.orders < 1:
        parser.error("--orders: at least 1")
    if options.db is None and on_kafka() and not os.environ.get(STORE_VARIABLE):
        parser.error(f"{LOG_VARIABLE} names Kafka: name a store, too, with {STORE_VARIABLE}")
    return options


def prepare(options: argparse.Namespace) -> Run:
    """Decide where this run goes. Only the default file is ever deleted."""
    tag, log = f"{int(time.time()):x}-", None
    if options.db is not None:
        file = options.db
        tag, log = tag if file.exists() else "", f"sqlite:///{file}"
        ledger = file.with_name(f"{file.stem}-providers.db")
    else:
        ledger = DEFAULT_FILE.with_name(f"{DEFAULT_FILE.stem}-providers.db")
        for file in (ledger, DEFAULT_FILE):
            if file is ledger or not os.environ.get(LOG_VARIABLE):
                for suffix in ("", "-wal", "-shm"):
                    file.with_name(file.name + suffix).unlink(missing_ok=True)
        if not os.environ.get(LOG_VARIABLE):
            tag, log = "", f"sqlite:///{DEFAULT_FILE}"
    first = options.orders * 4 // 10 + 1 if options.outage_from is None else options.outage_from
    last = options.orders * 48 // 100 if options.outage_to is None else options.outage_to
    orders = tuple(
        Order(f"order-{tag}{n:04}", n, EXPIRED_TOKEN if first <= n <= last else GOOD_TOKEN)
        for n in range(1, options.orders + 1)
    )
    return Run(log, ledger, orders)


async def live(run: Run, console: Console) -> Told:
    """Open the engine, tell the story."""
    providers = Providers(run.ledger)
    try:
        async with (
            connect(run.log, sagas=[OrderSaga], resources={"providers": providers}) as engine,
            projector_beside(run),
        ):
            return await tell(engine, run, console)
    finally:
        providers.close()


def on_kafka() -> bool:
    return os.environ.get(LOG_VARIABLE, "").startswith("kafka://")


@asynccontextmanager
async def projector_beside(run: Run) -> AsyncIterator[None]:
    """On Kafka the projector is a program of its own; in an embedded log the engine runs it."""
    if run.log is not None or not on_kafka():
        yield
        return
    process = await asyncio.create_subprocess_exec(
        COMMAND, "projector", "run", stdout=DEVNULL, stderr=PIPE
    )
    try:
        yield
    finally:
        ended_early = process.returncode is not None
        if not ended_early:
            process.terminate()
        _, said = await process.communicate()
        if ended_early:
            print(f"the projector ended early: {said.decode()}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
