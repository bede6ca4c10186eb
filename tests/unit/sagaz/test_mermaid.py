"""Drawings: text that Mermaid takes, and the trail of a run."""

from __future__ import annotations

from typing import Any

import pytest

from sagaz_es import Engine, InMemorySagaStorage, Saga, SagaConfig, action, compensate
from sagaz_es.errors import ConfigurationError
from sagaz_es.log.memory import MemoryEventLog


class Order(Saga):
    saga_name = "order"

    @action("reserve", depends_on=[])
    async def reserve(self, ctx: Any) -> None: ...

    @compensate("reserve")
    async def release(self, ctx: Any) -> None: ...

    @action("check", depends_on=["reserve"])
    async def check(self, ctx: Any) -> None: ...

    @action("charge", depends_on=["check"], max_retries=0)
    async def charge(self, ctx: Any) -> None:
        if ctx.get("poor"):
            raise ValueError("poor")

    @compensate("charge")
    async def refund(self, ctx: Any) -> None: ...

    @action("ship it", depends_on=["charge"], pivot=True)
    async def ship(self, ctx: Any) -> None: ...


WHOLE = """\
flowchart TB
    START((●))
    reserve(["reserve"])
    check[/"check"/]
    charge["charge"]
    s_73686970206974[["ship it"]]
    SUCCESS((◎))
    ROLLED_BACK((◎))
    comp_reserve{{"undo reserve"}}
    comp_charge{{"undo charge"}}
    START --> reserve
    reserve --> check
    check --> charge
    charge --> s_73686970206974
    s_73686970206974 --> SUCCESS
    reserve -. compensate .-> comp_reserve
    charge -. compensate .-> comp_charge
    comp_reserve -.-> ROLLED_BACK
    comp_charge -.-> comp_reserve
    classDef undone fill:#fff3cd,stroke:#ffc107
    class comp_reserve,comp_charge undone
    classDef pivot stroke:#6f42c1,stroke-width:3px
    class s_73686970206974 pivot"""

TRAIL = """\
flowchart LR
    START((●))
    reserve(["reserve"])
    check[/"check"/]
    charge["charge"]
    ROLLED_BACK((◎))
    comp_reserve{{"undo reserve"}}
    START --> reserve
    reserve --> check
    check --> charge
    reserve -. compensate .-> comp_reserve
    comp_reserve -.-> ROLLED_BACK
    classDef done fill:#d4edda,stroke:#28a745
    class reserve,check done
    classDef failed fill:#f8d7da,stroke:#dc3545
    class charge failed
    classDef undone fill:#fff3cd,stroke:#ffc107
    class comp_reserve undone"""


def test_the_whole_saga() -> None:
    assert Order().to_mermaid() == WHOLE
    assert Order().to_mermaid_markdown() == f"```mermaid\n{WHOLE}\n```"


def test_a_trail_shows_what_a_run_touched() -> None:
    trail = {
        "completed_steps": ["reserve", "check"],
        "failed_step": "charge",
        "compensated_steps": ["reserve"],
    }
    assert Order().to_mermaid("LR", highlight_trail=trail) == TRAIL


async def test_the_trail_comes_out_of_the_recorded_events() -> None:
    async with Engine(MemoryEventLog(), sagas=[Order]) as engine:
        await engine.run(Order, {"poor": True}, saga_id="order-1")
        assert await Order().to_mermaid_with_execution("order-1", engine, "LR") == TRAIL


async def test_a_run_on_a_storage_in_memory_is_drawn_from_there() -> None:
    storage = InMemorySagaStorage()
    order = Order(config=SagaConfig(storage, metrics=False, logging=False))
    with pytest.raises(ValueError):
        await order.run({"poor": True}, saga_id="order-1")
    assert await Order().to_mermaid_with_execution("order-1", storage, "LR") == TRAIL


async def test_without_markers_and_compensations_the_steps_are_left() -> None:
    drawing = Order().to_mermaid(show_compensation=False, show_state_markers=False)
    assert not any(word in drawing for word in ("START", "SUCCESS", "undo", "ROLLED_BACK"))


def test_names_cannot_break_the_drawing() -> None:
    async def step(ctx: Any) -> None: ...

    drawing = Saga("x").add_step("end", step).add_step('a"<b>', step).to_mermaid()
    assert '    s_656e64(["end"])' in drawing
    assert '[/"a&quot;&lt;b>"/]' in drawing


def test_a_child_step_names_its_saga() -> None:
    saga = Saga("shop").add_step("pay", print, child="payment")
    saga.add_step("pack", print, child="<parcel>", for_each=True)
    drawing = saga.to_mermaid(show_compensation=False)
    assert 'pay(["pay<br/>saga payment"])' in drawing
    assert 'pack["pack<br/>saga &lt;parcel>, for each item"]' in drawing


def test_an_unknown_direction_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="direction"):
        Order().to_mermaid("diagonal")
