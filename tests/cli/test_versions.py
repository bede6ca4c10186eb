"""`sagaz-es versions`: sagas by definition, and which of them code fits."""

from __future__ import annotations

import asyncio
import re
from typing import Any, ClassVar

import pytest
import yaml

from sagaz_es import Saga, SagaRecorder, action, child, connect
from sagaz_es.engine.registry import Registry
from sagaz_es.ports import DefinitionCount
from sagaz_es_cli.versions import versions_of

from .changed_shop import OrderSaga as Changed
from .conftest import Shop
from .shop import OrderSaga

OLD, NEW = OrderSaga.fingerprint(), Changed.fingerprint()
SHOP, CHANGED = "tests.cli.shop:OrderSaga", "tests.cli.changed_shop:OrderSaga"


class Declares(Changed):
    saga_name = "order"
    compatible_with: ClassVar[tuple[str, ...]] = (OLD,)


class Waiting(Saga):
    saga_name = "waiting"

    @action("wait", wait_for="a word")
    async def wait(self, ctx: Any) -> None: ...


class Renamed(Saga):
    """Declares to carry on what waits, and has lost the step that has begun."""

    saga_name = "waiting"
    compatible_with: ClassVar[tuple[str, ...]] = (Waiting.fingerprint(),)

    @action("listen", wait_for="a word")
    async def listen(self, ctx: Any) -> None: ...


class Longer(Waiting):
    saga_name = "waiting"
    compatible_with: ClassVar[tuple[str, ...]] = (Waiting.fingerprint(),)

    @action("then", depends_on=["wait"])
    async def then(self, ctx: Any) -> None: ...


class Migrates(Longer):
    saga_name = "waiting"

    def migrate(self, saga: Any) -> Any:
        print("migrates", saga.saga_id)
        return {"copy": saga.context["amount"]}


@pytest.fixture
def orders(shop: Shop, ledger: Any) -> Shop:
    """Two ended orders of the shop, a third of the changed shop; one that waits."""
    shop.order("o-1")
    shop.order("o-2", token="bad")

    async def more() -> None:
        async with connect(shop.log, sagas=[Changed, Waiting], clock=shop.clock) as engine:
            await engine.run(Changed, {"token": "good"}, saga_id="o-3")
            await engine.start(Waiting, saga_id="w-1")

    asyncio.run(more())
    return shop


def rows(shop: Shop, *options: str) -> list[tuple[Any, ...]]:
    return [
        (row["saga_name"], row["fingerprint"], row["unfinished"], row["replayable"], row["fits"])
        for row in shop.run("versions", *options).json
    ]


def test_sagas_are_counted_by_name_and_fingerprint(orders: Shop) -> None:
    assert rows(orders) == sorted(
        [
            ("order", OLD, 0, 2, None),
            ("order", NEW, 0, 1, None),
            ("waiting", Waiting.fingerprint(), 1, 0, None),
        ]
    )
    assert rows(orders, "--name", "waiting") == [("waiting", Waiting.fingerprint(), 1, 0, None)]
    statuses = {row["fingerprint"]: row["statuses"] for row in orders.run("versions").json}
    assert statuses[OLD] == {"completed": 1, "rolled_back": 1}


def test_with_code_it_says_which_of_them_it_fits_and_what_is_different(orders: Shop) -> None:
    found = {row["fingerprint"]: row for row in orders.run("versions", "--app", CHANGED).json}
    assert {key: row["fits"] for key, row in found.items()} == {
        OLD: "no",
        NEW: "yes",
        Waiting.fingerprint(): "no code",
    }
    assert found[OLD]["differences"] == ["step 'pack' is new"]
    app = f"{__name__}:Declares"
    assert ("order", OLD, 0, 2, "declared") in rows(orders, "--app", app)


def test_code_whose_definition_has_no_saga_yet_stands_there_too(shop: Shop, ledger: Any) -> None:
    shop.order("o-1")
    assert ("order", NEW, 0, 0, "yes") in rows(shop, "--app", CHANGED)


def test_recorded_sagas_take_any_code_of_their_name(shop: Shop) -> None:
    async def record() -> None:
        async with SagaRecorder(shop.log, "order") as recorder:
            await recorder.started("r-1", {})
            await recorder.completed("r-1")

    asyncio.run(record())
    assert ("order", None, 0, 1, "yes") in rows(shop, "--app", SHOP)


def test_a_check_is_refused_while_unfinished_sagas_do_not_fit(orders: Shop) -> None:
    assert orders.run("versions", "--name", "order", "--app", CHANGED, "--check").status == 0
    refused = orders.run("versions", "--app", CHANGED, "--check")
    assert refused.status == 3
    assert refused.error == "1 unfinished sagas are refused by this code"
    assert orders.run("versions", "--check").status == 2


def test_unfinished_sagas_of_a_declared_definition_are_looked_at_one_by_one(orders: Shop) -> None:
    """A declaration cannot cover what has begun otherwise: the engine would refuse w-1."""
    refused = orders.run("versions", "--app", f"{__name__}:Renamed", "--check", "--name", "waiting")
    row = {one["fingerprint"]: one for one in refused.json}[Waiting.fingerprint()]
    assert (refused.status, row["fits"], row["refused"], row["looked_at"]) == (3, "declared", 1, 1)
    assert "step 'wait' has begun and is missing" in row["why"]
    assert row["why"] in refused.stderr
    carried = orders.run("versions", "--app", f"{__name__}:Longer", "--check", "--name", "waiting")
    row = {one["fingerprint"]: one for one in carried.json}[Waiting.fingerprint()]
    assert (carried.status, row["refused"], row["looked_at"], row["why"]) == (0, 0, 1, None)


def test_migrate_is_tried_and_what_it_raises_is_a_refusal(orders: Shop) -> None:
    before = orders.run("replay", "list-changes", "w-1").json
    refused = orders.run(
        "versions", "--app", f"{__name__}:Migrates", "--check", "--name", "waiting"
    )
    row = {one["fingerprint"]: one for one in refused.json}[Waiting.fingerprint()]
    assert (refused.status, row["refused"]) == (3, 1)
    assert "migrate of 'waiting' failed (KeyError('amount'))" in row["why"]
    assert "migrates w-1" in refused.stderr
    assert orders.run("replay", "list-changes", "w-1").json == before


def test_what_was_not_looked_at_is_no_green_light(orders: Shop) -> None:
    async def more() -> None:
        async with connect(orders.log, sagas=[Waiting], clock=orders.clock) as engine:
            await engine.start(Waiting, saga_id="w-2")

    asyncio.run(more())
    how = ("versions", "--app", f"{__name__}:Longer", "--check", "--name", "waiting")
    partly = orders.run(*how, "--limit", "1")
    assert partly.status == 5
    assert "only 1 of 2 unfinished sagas of waiting" in partly.stderr
    assert orders.run(*how).status == 0


def test_it_is_a_table_too_and_yaml(orders: Shop) -> None:
    table = orders.run("versions", "--app", CHANGED, "--format", "table").stdout
    assert re.search(rf"order +{OLD} +0 +2 +no +0 +step 'pack' is new", table)
    read = yaml.safe_load(orders.run("versions", "--format", "yaml").stdout)
    assert read == orders.run("versions").json


def test_an_empty_log_has_none(shop: Shop) -> None:
    answer = shop.run("versions")
    assert (answer.status, answer.json) == (0, [])
    assert "there are no sagas yet" in answer.stderr


def test_sagas_that_start_a_child_for_each_item_fit_code_that_has_the_childs_class() -> None:
    class Order(Saga):
        @child("parcels", "Parcel", for_each=True)
        async def parcels(self, ctx: Any) -> Any: ...

    class Parcel(Saga):
        @action("pack")
        async def pack(self, ctx: Any) -> None: ...

    registry = Registry([Order, Parcel])
    graph = registry.by_name("Parcel*3").graph
    counts = [
        DefinitionCount("Parcel*3", graph.fingerprint, "executing", 2, graph.text),
        DefinitionCount("Letter*3", graph.fingerprint, "executing", 1, graph.text),
    ]
    fits = {one.saga_name: one.fits for one in versions_of(counts, registry)}
    assert fits == {"Letter*3": "no code", "Order": "yes", "Parcel": "yes", "Parcel*3": "yes"}
