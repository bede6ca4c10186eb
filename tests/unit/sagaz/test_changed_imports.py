"""A file written for sagaz runs once its import lines are changed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

IMPORT = re.compile(r"^(\s*)from sagaz[\w.]* import ", re.MULTILINE)
WHOLE = re.compile(r"^(\s*)import sagaz$", re.MULTILINE)


def changed(program: str) -> str:
    """The rewrite that is promised: on import lines alone."""
    program = IMPORT.sub(r"\1from sagaz_es import ", program)
    return WHOLE.sub(r"\1import sagaz_es as sagaz", program)


DECORATED = """
import asyncio
from uuid import UUID
from sagaz import Saga, SagaContext, action, compensate
from sagaz.core.exceptions import SagaStepError

class OrderSaga(Saga):
    saga_name = "order"

    @action("reserve")
    async def reserve(self, ctx: SagaContext):
        return {"reservations": [item["id"] for item in ctx.get("items", [])]}

    @compensate("reserve")
    async def release(self, ctx: SagaContext):
        print("release", ctx.get("reservations"))

    @action("pay", depends_on=["reserve"], max_retries=0)
    async def pay(self, ctx: SagaContext):
        if ctx["amount"] > 100:
            raise SagaStepError(f"{ctx['amount']} is too much")
        return {"transaction": f"t-{ctx['order_id']}"}

async def main():
    saga = OrderSaga()
    done = await saga.run({"order_id": 1, "amount": 50, "items": [{"id": "a"}]})
    print(done["transaction"], UUID(done["saga_id"]).version)
    try:
        await saga.run({"order_id": 2, "amount": 500, "items": [{"id": "b"}]})
    except SagaStepError as error:
        print("failed:", error)

asyncio.run(main())
"""

BY_HAND = """
import asyncio
from sagaz.core.saga import Saga
from sagaz.core.types import SagaStatus

async def main():
    async def charge(ctx):
        ctx.set("charged", ctx.get("amount"))
        return {"charge_id": "c-1"}

    async def refund(result, ctx):
        print("refund", result["charge_id"])

    async def ship(ctx):
        raise ValueError("no carrier")

    saga = Saga(name="by-hand", version="1.0", retry_backoff_base=0.001)
    saga.context.set("amount", 10)
    await saga.add_step("charge", charge, refund, timeout=5.0)
    await saga.add_step("ship", ship, max_retries=1, dependencies={"charge"})
    result = await saga.execute()
    print(result.success, result.status is SagaStatus.ROLLED_BACK, result.error)
    print(saga.get_status()["status"], result.context.get("charged"), result.completed_steps)

asyncio.run(main())
"""

DAG = """
import asyncio
import sagaz
from sagaz import ParallelFailureStrategy

async def main():
    async def root(ctx): return {"root": 1}
    async def left(ctx): return {"left": ctx["root"] + 1}
    async def right(ctx): return {"right": ctx["root"] + 2}
    async def join(ctx): return {"sum": ctx["left"] + ctx["right"]}

    saga = sagaz.Saga(name="dag")
    saga.failure_strategy = ParallelFailureStrategy.WAIT_ALL
    saga.add_step("root", root, depends_on=[])
    saga.add_step("left", left, depends_on=["root"]).add_step("right", right, depends_on=["root"])
    saga.add_step("join", join, depends_on=["left", "right"])
    print((await saga.run({}))["sum"])
    print([sorted(step.step_id for step in level) for level in saga.get_execution_order()])

asyncio.run(main())
"""

PIVOT = """
import asyncio
from sagaz import Saga, SagaContext, action, compensate, forward_recovery
from sagaz.core.execution.pivot import RecoveryAction

class Payment(Saga):
    saga_name = "payment"

    @action("reserve")
    async def reserve(self, ctx: SagaContext): return {"reservation": 1}

    @compensate("reserve")
    async def release(self, ctx: SagaContext): print("never")

    @action("charge", depends_on=["reserve"], pivot=True)
    async def charge(self, ctx: SagaContext): return {"charge": 1}

    @action("ship", depends_on=["charge"], max_retries=0)
    async def ship(self, ctx: SagaContext):
        if ctx.get("carrier") != "other":
            raise ConnectionError("the carrier is down")
        return {"shipped_by": ctx["carrier"]}

    @forward_recovery("ship")
    async def another_carrier(self, ctx: SagaContext, error: Exception) -> RecoveryAction:
        print("recover from", error)
        ctx.set("carrier", "other")
        return RecoveryAction.RETRY_WITH_ALTERNATE

async def main():
    saga = Payment()
    print((await saga.run({}))["shipped_by"], saga.get_pivot_steps())

asyncio.run(main())
"""

LISTENERS = """
import asyncio
import logging
import sys
from sagaz import Saga, SagaConfig, SagaListener, action, configure
from sagaz.core.hooks import log_step_lifecycle
from sagaz.core.listeners import LoggingSagaListener
from sagaz.core.storage.memory import InMemorySagaStorage

logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")

class Mine(SagaListener):
    async def on_step_success(self, saga_name, step_name, ctx, result):
        print(saga_name, step_name, result)

class Listened(Saga):
    saga_name = "listened"
    listeners = [Mine(), LoggingSagaListener(level="WARNING")]

    @action("only", **log_step_lifecycle())
    async def only(self, ctx): return {"a": 1}

configure(SagaConfig(storage=InMemorySagaStorage(), metrics=False))
context = asyncio.run(Listened().run({}, saga_id="id-1"))
"""

PROGRAMS = {
    "decorated": (DECORATED, "t-1 4\nrelease ['b']\nfailed: 500 is too much\n"),
    "by hand": (BY_HAND, "refund c-1\nFalse True no carrier\nrolled_back 10 1\n"),
    "dag": (DAG, "5\n[['root'], ['left', 'right'], ['join']]\n"),
    "pivot": (PIVOT, "recover from the carrier is down\nother ['charge']\n"),
    "listeners": (
        LISTENERS,
        "saga listened (id-1) starts\nstep listened.only starts\nlistened only {'a': 1}\n"
        "step listened.only is done\nsaga listened (id-1) is complete\n",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_written_for_sagaz_runs_after_its_import_lines_are_changed(
    name: str, tmp_path: Path
) -> None:
    program, printed = PROGRAMS[name]
    (tmp_path / "program.py").write_text(changed(program))
    environment = {key: text for key, text in os.environ.items() if not key.startswith("SAGAZ_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "program.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == (printed, "")
