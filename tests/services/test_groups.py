"""Two services with different classes on one log: each is a group of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest

from sagaz_es import Engine, EngineConfig, Saga, action, compensate, connect
from sagaz_es.connect import open_log
from sagaz_es.errors import SagaIdTaken
from sagaz_es.sagas.result import SagaHandle
from tests.helpers import accepted_story, story
from tests.services.running import Ledger, Workers, until
from tests.services.takeover_worker import Order as WorkerOrder

pytestmark = pytest.mark.asyncio


class Service(Saga):
    """Notes which service did what; `hold` is waited for in the middle."""

    @staticmethod
    async def at_work(ctx: Any) -> None:
        ctx.resources["done"].append((ctx.resources["service"], ctx.step, ctx.saga_id))
        hold = ctx.resources["hold"]
        if hold is not None and ctx.step in ("charge", "send"):
            await hold.wait()


class Order(Service):
    saga_name: ClassVar[str | None] = "order"

    @action("charge", max_retries=0)
    async def charge(self, ctx: Any) -> None:
        await self.at_work(ctx)

    @compensate("charge")
    async def refund(self, ctx: Any) -> None:
        ctx.resources["done"].append((ctx.resources["service"], "refund", ctx.saga_id))

    @action("ship", max_retries=0)
    async def ship(self, ctx: Any) -> None:
        await self.at_work(ctx)

    @compensate("ship")
    async def recall(self, ctx: Any) -> None:
        ctx.resources["done"].append((ctx.resources["service"], "recall", ctx.saga_id))


class Invoice(Service):
    saga_name: ClassVar[str | None] = "invoice"

    @action("send", max_retries=0)
    async def send(self, ctx: Any) -> None:
        await self.at_work(ctx)


@pytest.fixture(params=["memory", "sqlite", "kafka"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://{uuid4().hex}"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.db"
    namespace = request.getfixturevalue("kafka_namespace")
    return f"kafka://{request.getfixturevalue('kafka_bootstrap')}/{namespace}?partitions=2"


class Services:
    """Opens engines of groups on one log; all of them write one list of what was done."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url, self._stack = url, stack
        self.done: list[tuple[str, str, str]] = []

    async def open(
        self, group: str, *sagas: type[Saga], hold: asyncio.Event | None = None
    ) -> Engine:
        resources = {"done": self.done, "service": group, "hold": hold}
        more = "&" if "?" in self.url else "?"
        engine = connect(
            f"{self.url}{more}group={group}",
            sagas=sagas,
            resources=resources,
            config=EngineConfig(housekeeping_seconds=0.05, takeover_seconds=0.2, drain_seconds=0.1),
        )
        return await self._stack.enter_async_context(engine)

    async def marks(self, group: str) -> tuple[list[int], list[int]]:
        """The group's low-water marks, and where the partitions end."""
        log = open_log(self.url)
        await log.open()
        try:
            every = range(log.partitions)
            marks = [await log.low_water_mark(index, group=group) for index in every]
            return marks, [(await log.bounds(index)).end for index in every]
        finally:
            if not self.url.startswith("memory"):
                await log.close()

    async def until_the_marks_are_at_the_end(self, group: str) -> None:
        async with asyncio.timeout(60):
            while True:
                marks, ends = await self.marks(group)
                if marks == ends:
                    return
                await asyncio.sleep(0.05)


@pytest.fixture
async def services(url: str) -> AsyncIterator[Services]:
    async with AsyncExitStack() as stack:
        yield Services(url, stack)


async def ended(handle: SagaHandle) -> str:
    return str((await handle.result(60)).status)


async def test_each_service_runs_the_sagas_of_its_own_classes_whoever_starts_them(
    services: Services,
) -> None:
    orders = await services.open("orders", Order)
    billing = await services.open("billing", Invoice)
    for number in range(4):
        mine = await orders.start(Order, {}, saga_id=f"o-{number}")
        theirs = await orders.start("invoice", {}, saga_id=f"i-{number}")
        back = await billing.start("order", {}, saga_id=f"b-{number}")
        assert [await ended(handle) for handle in (mine, theirs, back)] == ["completed"] * 3
    assert sorted(services.done) == sorted(
        [("billing", "send", f"i-{n}") for n in range(4)]
        + [
            ("orders", step, f"{sign}-{n}")
            for n in range(4)
            for sign in "ob"
            for step in ("charge", "ship")
        ]
    )


async def test_what_a_service_leaves_unfinished_waits_for_its_own_group(
    services: Services,
) -> None:
    billing = await services.open("billing", Invoice)
    crashed = await services.open("orders", Order, hold=asyncio.Event())
    handle = await crashed.start(Order, {}, saga_id="o-1")
    await crashed.close()
    assert [done for done in services.done if done[1] == "ship"] == []

    # Many rounds of the other group's housekeeping: it would take over what is silent.
    for number in range(10):
        await billing.run(Invoice, {}, saga_id=f"i-{number}")
        await asyncio.sleep(0.05)
    assert "SagaClaimed" not in await story(billing.log, "o-1")

    again = await services.open("orders", Order)
    assert await ended(await again.handle(handle.saga_id)) == "completed"
    assert ("orders", "ship", "o-1") in services.done
    assert (await accepted_story(again.log, "o-1")).count("SagaClaimed") == 1


async def test_a_start_waits_in_the_log_for_the_group_that_has_the_class(
    services: Services,
) -> None:
    orders = await services.open("orders", Order)
    starting = asyncio.create_task(orders.start("invoice", {}, saga_id="i-1"))
    await orders.run(Order, {}, saga_id="o-1")
    await asyncio.sleep(0.3)
    assert not starting.done(), "nobody refuses what another group may have"
    await services.open("billing", Invoice)
    async with asyncio.timeout(60):
        assert await ended(await starting) == "completed"
    assert ("billing", "send", "i-1") in services.done


async def test_another_groups_unfinished_sagas_hold_no_mark(services: Services) -> None:
    hold = asyncio.Event()
    orders = await services.open("orders", Order)
    billing = await services.open("billing", Invoice, hold=hold)
    invoice = await billing.start(Invoice, {}, saga_id="i-1")
    await orders.run(Order, {}, saga_id="o-1")
    await services.until_the_marks_are_at_the_end("orders")
    marks, ends = await services.marks("billing")
    assert marks != ends
    hold.set()
    assert await ended(invoice) == "completed"
    await services.until_the_marks_are_at_the_end("billing")


async def test_a_class_that_moves_to_another_group_takes_its_unfinished_sagas_along(
    services: Services,
) -> None:
    orders = await services.open("orders", Order)
    billing = await services.open("billing", Invoice, hold=asyncio.Event())
    await billing.start(Invoice, {}, saga_id="i-1")
    await billing.close()
    await orders.run(Order, {}, saga_id="o-1")
    await services.until_the_marks_are_at_the_end("orders")  # they have passed the invoice
    await orders.close()

    both = await services.open("orders", Order, Invoice)
    assert await ended(await both.handle("i-1")) == "completed"
    assert services.done.count(("orders", "send", "i-1")) == 1


async def test_what_is_asked_of_a_saga_reaches_the_group_that_has_it(services: Services) -> None:
    orders = await services.open("orders", Order, hold=asyncio.Event())
    billing = await services.open("billing", Invoice)
    handle = await orders.start(Order, {}, saga_id="o-1")
    await billing.cancel("o-1", reason="by the other service")
    assert await ended(handle) == "cancelled"

    plan = await billing.plan_replay("o-1", "charge", allow=["charge"])
    replaying = asyncio.create_task(billing.replay(plan, actor="anna"))
    await orders.close()  # what is asked for stands in the log
    again = await services.open("orders", Order)
    async with asyncio.timeout(60):
        result = await replaying
    assert result.success
    assert result.new_saga_id is not None
    branch = [done for done in services.done if done[2] == result.new_saga_id]
    assert branch == [
        ("orders", "charge", result.new_saga_id),
        ("orders", "ship", result.new_saga_id),
    ]

    assert (await billing.undo_replay(result.new_saga_id)).success
    assert services.done[-2:] == [
        ("orders", "recall", result.new_saga_id),
        ("orders", "refund", result.new_saga_id),
    ]
    assert (await again.current(result.new_saga_id)).undone


async def test_an_id_is_one_saga_in_all_groups(services: Services) -> None:
    orders = await services.open("orders", Order)
    billing = await services.open("billing", Invoice)
    await orders.run(Order, {}, saga_id="x-1")
    with pytest.raises(SagaIdTaken, match="the id of a saga of 'order'"):
        await billing.run(Invoice, {}, saga_id="x-1")
    assert [done for done in services.done if done[2] == "x-1"] == [
        ("orders", "charge", "x-1"),
        ("orders", "ship", "x-1"),
    ]


async def test_of_services_on_an_embedded_log_one_projects_each_partition(
    services: Services, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    if url.startswith("kafka"):
        return  # it has no store; its projector is a process of its own
    orders = await services.open("orders", Order)
    billing = await services.open("billing", Invoice)
    for number in range(8):
        await orders.run(Order, {}, saga_id=f"o-{number}")
        await billing.run(Invoice, {}, saga_id=f"i-{number}")
    assert billing.store is not None
    await orders.close()  # what it projected goes on with the other
    await billing.run(Invoice, {}, saga_id="i-8")
    async with asyncio.timeout(60):
        while (  # noqa: ASYNC110 - a store tells nobody that it moved
            await billing.store.count_by_status()
        ) != {"completed": 17}:
            await asyncio.sleep(0.05)
    assert "another projector is at work" not in caplog.text


@pytest.mark.parametrize("kind", ["sqlite", "kafka"])
async def test_what_a_killed_worker_left_is_taken_over_by_its_own_group_alone(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if kind == "sqlite":
        log = f"sqlite:///{tmp_path}/log.db"
    else:
        namespace = request.getfixturevalue("kafka_namespace")
        log = f"kafka://{request.getfixturevalue('kafka_bootstrap')}/{namespace}?partitions=2"
    ledger = Ledger(tmp_path / "ledger")
    mine = f"{log}{'&' if '?' in log else '?'}group=orders"
    workers = Workers(mine, ledger)
    async with AsyncExitStack() as stack:
        services = Services(log, stack)
        billing = await services.open("billing", Invoice)
        try:
            first = workers.start(3600)
            await first.ready()
            engine = connect(mine, sagas=[WorkerOrder])
            await engine.open(join=False)
            stack.push_async_callback(engine.close)
            for number in range(4):
                await engine.start(WorkerOrder, {"order": f"o-{number}"}, saga_id=f"o-{number}")
            await until(ledger, "charge-begins", 4)
            first.process.kill()
            first.process.wait()
            for number in range(5):
                await billing.run(Invoice, {}, saga_id=f"i-{number}")
                await asyncio.sleep(0.2)
            for number in range(4):
                assert "SagaClaimed" not in await story(billing.log, f"o-{number}")
            second = workers.start(0)
            for number in range(4):
                handle = await engine.handle(f"o-{number}")
                assert (await handle.result(60)).success
        finally:
            for one in workers.started:
                one.process.kill()
                one.process.wait()
                one.lines.close()
    assert ledger.count("reserve") == {f"o-{number}": 1 for number in range(4)}
    assert {row[4] for row in ledger.rows("ship")} == {str(second.process.pid)}
