"""From a seed to a plan: what runs, what goes wrong, and when."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from sagaz_es.core.children import child_id
from sagaz_es.core.snapshot import SnapshotPolicy, SnapshotStrategy
from sagaz_es.testing.simulation import Weather
from tests.simulation.machine import Doing, Plan
from tests.simulation.sagas import FLEETS, GROUPS, PARENTS, PLAIN, REGISTRY
from tests.simulation.world import Habits

POLICIES = (
    SnapshotPolicy(SnapshotStrategy.EVERY_N_EVENTS, every_events=3),
    SnapshotPolicy(SnapshotStrategy.BEFORE_EACH_STEP),
    SnapshotPolicy(SnapshotStrategy.AFTER_EACH_STEP, max_snapshots=2),
    SnapshotPolicy(SnapshotStrategy.EVERY_INTERVAL, every_us=500_000),
)


def plan_of(seed: int) -> Plan:
    """The plan of a seed; the same for ever, as long as this file is."""
    random = Random(f"{seed} plan")
    engines = random.choice((1, 2, 2, 2, 3))
    partitions = random.choice((1, 1, 2, 3))
    storm = random.choice((0.0, 0.5, 1.0, 1.0, 2.0))  # how bad the weather is
    replays = random.random() < 0.2  # one family, and many who replay it
    heals_at = random.uniform(8.0, 14.0) if replays else random.uniform(3.0, 9.0)
    parents = Random(f"{seed} children").random() < 0.12
    few = Random(f"{seed} few")
    crowd = few.random() < 0.06
    apart = Random(f"{seed} groups")
    groups = ("orders", "payments") if apart.random() < 0.08 and not (crowd or parents) else ("",)
    engines = max(engines, len(groups))
    big = Random(f"{seed} blobs")
    large = big.random() < 0.08
    names = PARENTS if parents else GROUPED if len(groups) > 1 else PLAIN
    doings = [
        *(
            _crowd(few, engines, heals_at)
            if crowd
            else (_family if replays else _sagas)(random, engines, heals_at, names)
        ),
        *_trouble(random, engines, partitions, heals_at, storm),
        # With chances of its own: what is added here leaves the plans of all seeds as they were.
        *_operators(Random(f"{seed} operators"), heals_at),
        *(_blobs(big, heals_at) if large else ()),
        *_left_behind(Random(f"{seed} behind"), engines, heals_at),
        *_lost_tail(Random(f"{seed} tail"), partitions, heals_at),
    ]
    doings += _recordings(Random(f"{seed} recorders"), heals_at)
    doings += _imports(Random(f"{seed} imports"), heals_at)
    if len(groups) == 1 and not crowd:
        doings += _fares(Random(f"{seed} fares"), engines, heals_at)
        doings += _fleets(Random(f"{seed} fleets"), engines, heals_at)
    doings += _cancels(Random(f"{seed} cancels"), doings)
    doings.sort(key=lambda doing: doing.at)
    return Plan(
        seed,
        partitions,
        engines,
        random.choice(("none", "beside", "inside")),
        Weather(
            unknown=0.05 * storm,
            errors=0.10 * storm * random.choice((0, 1)),
            store_errors=0.10 * storm * random.choice((0, 1)),
            latency_s=random.choice((0.002, 0.01, 0.05)),
            short=random.choice((0.0, 0.3)),
            blob_errors=0.10 * storm * big.choice((0, 1)) if large else 0.0,
        ),
        Habits(
            fails=random.choice((0.0, 0.1) if replays else (0.0, 0.1, 0.3, 0.5)),
            hangs=random.choice((0.0,) if replays else (0.0, 0.0, 0.05, 0.3)),
            undo_fails=random.choice((0.0, 0.0, 0.3) if replays else (0.0, 0.1, 0.5)),
            slow_s=random.choice((0.0, 0.02) if replays else (0.0, 0.02, 0.2, 1.0)),
        ),
        random.choice(POLICIES),
        random.random() < 0.3,
        tuple(doings),
        heals_at,
        in_flight=few.choice((1, 1, 2, 3)) if crowd or few.random() < 0.05 else 0,
        bounded=crowd,
        groups=groups,
        large=large,
        grows=len(groups) > 1 and apart.random() < 0.5 and "forget" not in {d.what for d in doings},
    )


def words_of(plan: Plan) -> str:
    """What is done in a plan, each word between blanks; `max_in_flight` if it is bounded."""
    words = " ".join(map(str, plan.doings))
    return f" {words} {'max_in_flight' if plan.in_flight else ''} "


GROUPED = tuple(name for names in GROUPS.values() for name in names)


def _sagas(random: Random, engines: int, until: float, names: tuple[str, ...]) -> list[Doing]:
    doings: list[Doing] = []
    parents = names is PARENTS
    for number in range(random.choice((1, 1, 2) if parents else (1, 2, 2, 3, 4))):
        name = random.choice(names)
        given = f"{name}-{number}"
        saga_id = given if random.random() < 0.7 else None
        at = random.uniform(0.2, until * 0.6)
        for _ in range(random.choice((1, 1, 1, 2, 3)) if saga_id else 1):  # raced
            doings.append(_ask(random, at, engines, "run", name, saga_id, random.randrange(3)))
            at += random.choice((0.0, 0.01, 0.5))
        if saga_id is None:
            continue
        if random.random() < 0.3:  # and once more, when it may have ended long ago
            late = random.uniform(at, until)
            doings.append(_ask(random, late, engines, "run", name, saga_id, 0))
        for _ in range(random.choice((0, 1, 1, 2))):
            doings += _wish(random, engines, *_kin(random, name, given), at, until)
        if random.random() < 0.3:
            many = random.choice((1, 2, 3))
            doings += _replays(random, engines, *_kin(random, name, given), until, many)
        if parents and random.random() < 0.05:  # somebody else has the child's id
            whose, of = _kin(random, name, given)
            doings.append(_ask(random, at, engines, "run", of, whose, 0))
    return doings


def _blobs(random: Random, until: float) -> Iterator[Doing]:
    for _ in range(random.choice((0, 1, 2))):
        at = random.uniform(0.3, until)
        if random.random() < 0.5:
            yield Doing(at, "restart_blobs", (random.choice((0.5, 3.0)),))
        else:
            yield Doing(at, "delete_blobs", (random.choice((0.3, 1.0)), random.random() < 0.5))


def _crowd(random: Random, engines: int, until: float) -> list[Doing]:
    """More starts than an engine has room for, of two classes that wait for nobody."""
    names = random.sample(("order", "diamond", "wide", "strict", "loose"), 2)
    at, doings = 0.2, list[Doing]()
    for number in range(random.choice((5, 7, 10))):
        name = random.choice(names)
        saga_id = f"{name}-{number}" if random.random() < 0.8 else None
        for _ in range(random.choice((1, 1, 2)) if saga_id else 1):
            doings.append(_ask(random, at, engines, "run", name, saga_id, 0))
            at += random.choice((0.0, 0.01, 0.3))
        if saga_id and random.random() < 0.15:
            doings.append(_ask(random, random.uniform(at, until), engines, "cancel", saga_id))
    return doings


def _kin(random: Random, name: str, saga_id: str) -> tuple[str, str]:
    """A saga, or the first child of one of its steps, or of that: its id and name."""
    children = [node for node in REGISTRY.by_name(name).graph.steps if node.child]
    if not children or random.random() < 0.6:
        return saga_id, name
    node = random.choice(children)
    child = child_id(saga_id, node.name)
    if not node.child.endswith("*"):
        return _kin(random, node.child, child)
    if random.random() < 0.3:
        return child, f"{node.child}3"
    number = str(random.choice((1, 1, 2, 3)))
    return _kin(random, node.child.removesuffix("*"), child_id(child, number))


def _family(random: Random, engines: int, until: float, names: tuple[str, ...]) -> list[Doing]:
    parents = names is PARENTS
    plain = ("order", "diamond", "wide", "trip", "strict", "loose")
    name = random.choice(PARENTS if parents else plain)
    saga_id = f"{name}-0"
    begun = _ask(random, random.uniform(0.2, 1.0), engines, "run", name, saga_id, 0)
    many = random.choice((4, 8) if parents else (6, 10, 16))
    doings = [begun]
    for _ in range(many):
        doings += _replays(random, engines, *_kin(random, name, saga_id), until, 1)
    return doings


def _fares(random: Random, engines: int, until: float) -> Iterator[Doing]:
    """A family of replays whose steps are made with the values of others."""
    if random.random() < 0.92:
        return
    yield _ask(random, random.uniform(0.2, 0.6), engines, "run", "fare", "fare-0", 0)
    for _ in range(random.choice((2, 4, 8))):
        at, mark = random.uniform(1.0, until), f"mark-{random.randrange(1 << 30)}"
        if random.random() < 0.25:
            yield _ask(random, at, engines, "undo", "fare-0", mark)
            continue
        step = random.choice(("quote", "hold", "pay", "ship", "look"))
        override = random.choice((None, 1, {"price": "low"}, {"price": "high"}))
        allow = random.random() < 0.5
        yield _ask(random, at, engines, "replay", "fare-0", step, override, allow, mark)


def _fleets(random: Random, engines: int, until: float) -> Iterator[Doing]:
    """A parent with a child for each item of a list, and who wants something of one of them."""
    if random.random() < 0.94:
        return
    name = random.choice(FLEETS)
    saga_id, at = f"{name}-0", random.uniform(0.2, until * 0.4)
    yield _ask(random, at, engines, "run", name, saga_id, 0)
    for _ in range(random.choice((0, 1, 2))):
        yield from _wish(random, engines, *_kin(random, name, saga_id), at, until)
    for _ in range(random.choice((0, 0, 1, 2, 4))):
        yield from _replays(random, engines, *_kin(random, name, saga_id), until, 1)


def _wish(
    random: Random, engines: int, saga_id: str, name: str, at: float, until: float
) -> Iterator[Doing]:
    at = random.uniform(at, min(until, at + random.choice((0.3, 2.0, 10.0))))
    request = f"wish-{random.randrange(1 << 30)}"
    what = random.choice(("cancel", "cancel", "signal", "signal", "pause", "resume"))
    more: tuple[str, ...] = (saga_id, request)
    if what == "signal" or name == "asked":
        what, more = "signal", (saga_id, random.choice(("yes", "yes", "sure")), request)
    elif what == "cancel":
        more = (saga_id,)
    for _ in range(random.choice((1, 1, 2, 3))):  # told again
        yield _ask(random, at, engines, what, *more)
        at += random.choice((0.0, 0.005, 0.03, 0.2))


def _replays(
    random: Random, engines: int, saga_id: str, name: str, until: float, many: int
) -> Iterator[Doing]:
    steps = tuple(REGISTRY.by_name(name).steps)
    for _ in range(many):
        at = random.uniform(until * 0.2, until)
        mark = f"mark-{random.randrange(1 << 30)}"
        what = random.choice(("replay", "replay", "replay", "undo", "retry", "skip"))
        if what == "undo":
            yield _ask(random, at, engines, "undo", saga_id, mark)
            continue
        if what in ("retry", "skip"):
            call = f"{what}_compensation"
            yield _ask(random, at, engines, call, saga_id, random.choice(steps), mark)
            continue
        override = random.choice((None, None, 1, 2))
        allow = random.random() < 0.7
        for _ in range(random.choice((1, 1, 2))):  # raced
            more = (random.choice(steps), override, allow, mark)
            yield _ask(random, at, engines, "replay", saga_id, *more)
            mark = f"mark-{random.randrange(1 << 30)}"
            at += random.choice((0.0, 0.02))


def _operators(random: Random, until: float) -> Iterator[Doing]:
    """People at the projector; now and then a record that is not ours, to be driven past."""
    if random.random() < 0.9:
        return
    key = random.choice(("nobody", *(f"{name}-{n}" for name in PLAIN[:4] for n in (0, 1))))
    if random.random() < 0.7:
        yield Doing(random.uniform(0.2, until * 0.6), "poison", (key,))
    for _ in range(random.choice((1, 2, 3))):
        at = random.uniform(until * 0.4, until)
        what = random.choice(("catch_up", "status", "drive", "drive_all", "drive_all"))
        yield Doing(at, "operate", (what, key) if what.startswith("drive") else (what,))


def _left_behind(random: Random, engines: int, until: float) -> Iterator[Doing]:
    """Retention takes what a process has not read yet that was cut off meanwhile."""
    if random.random() < 0.95:
        return
    at = random.uniform(0.5, until * 0.7)
    yield Doing(at, random.choice(("cut", "cut", "pause")), (random.randrange(engines), 6.0))
    for _ in range(2):
        yield Doing(random.uniform(at + 2.0, at + 6.0), "forget")


def _cancels(random: Random, doings: list[Doing]) -> list[Doing]:
    """Of replays, while they begin."""
    return [
        Doing(at, "ask", (doing.args[0], "cancel_head", doing.args[2]))
        for doing in doings
        if doing.what == "ask" and doing.args[1] == "replay" and random.random() < 0.15
        for at in (doing.at + random.choice((0.01, 0.03, 0.05, 0.1, 0.3)),)
    ]


def _recordings(random: Random, until: float) -> Iterator[Doing]:
    """Services that record, often two of them one saga."""
    if random.random() < 0.95:
        return
    for number in range(random.choice((1, 2, 2, 3))):
        more = (f"recorded-{number // 2}", random.choice((2, 5, 12)), random.choice((1, 100)))
        yield Doing(random.uniform(0.2, until * 0.5), "record", more)
    for _ in range(random.choice((0, 1, 2))):
        yield Doing(random.uniform(until * 0.2, until), "kill_recorder")


def _imports(random: Random, until: float) -> Iterator[Doing]:
    """Files that are imported, the same one by several people."""
    if random.random() < 0.95:
        return
    for _ in range(random.choice((1, 2, 3))):
        yield Doing(random.uniform(0.2, until * 0.8), "import", (random.choice((1, 1, 2)),))
    if random.random() < 0.5:  # beside a saga that the file has a row of, too
        yield Doing(random.uniform(0.1, until * 0.3), "record", ("recorded-0", 5, 100))
    for _ in range(random.choice((1, 2))):
        yield Doing(random.uniform(until * 0.2, until), "kill_recorder")


def _lost_tail(random: Random, partitions: int, until: float) -> Iterator[Doing]:
    if random.random() < 0.95:
        return
    for _ in range(random.choice((1, 1, 1, 2))):
        more = (random.randrange(partitions), random.choice((1, 2, 5, 20)), random.uniform(0.2, 1))
        yield Doing(random.uniform(until * 0.3, until * 0.8), "lose_tail", more)


def _ask(random: Random, at: float, engines: int, call: str, *args: object) -> Doing:
    return Doing(at, "ask", (random.randrange(engines), call, *args))


def _trouble(
    random: Random, engines: int, partitions: int, until: float, storm: float
) -> list[Doing]:
    doings: list[Doing] = []
    for _ in range(random.choice((0, 1, 2, 3)) if storm else 0):
        at = random.uniform(0.3, until)
        number = random.randrange(engines)
        kind = random.choice(
            ("kill", "kill", "kill_at", "kill_at", "pause", "pause", "cut", "close", "close",
             "split", "split", "impostor", "jump", "restart_log", "lead_elsewhere",
             "restart_store", "poison")
        )  # fmt: skip
        if kind in ("kill", "close"):
            doings.append(Doing(at, kind, (number,)))
        elif kind == "kill_at":
            doings.append(Doing(at, kind, (number, random.randint(1, 200))))
        elif kind in ("pause", "cut"):
            doings.append(Doing(at, kind, (number, random.choice((0.5, 3.5, 6.0)))))
        elif kind == "impostor":
            doings.append(Doing(at, kind))
        elif kind == "split":
            more = (random.randrange(partitions), random.uniform(0.5, 4))
            doings.append(Doing(at, kind, (number, *more)))
        elif kind == "jump":
            doings.append(Doing(at, kind, (number, random.randint(-20, 20) * 1_000_000)))
        elif kind in ("restart_log", "restart_store"):
            doings.append(Doing(at, kind, (random.choice((0.3, 2.0, 5.0)),)))
        elif kind == "lead_elsewhere":
            doings.append(Doing(at, kind, (random.randrange(partitions), random.uniform(0.1, 2))))
        else:
            key = random.choice(("nobody", *(f"{name}-{n}" for name in PLAIN[:4] for n in (0, 1))))
            doings.append(Doing(at, kind, (key,)))
    if random.random() < 0.2:
        doings.append(Doing(random.uniform(until * 0.5, until), "forget"))
    return doings
