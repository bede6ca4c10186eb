"""Imports: real cases against a model made with the csv module, and every kind of bad file."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict, fold_into
from sagaz_es.core.state import SagaState
from sagaz_es.errors import AppendUnknown, ConfigurationError
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import Bounds, Chunk, EventLog, Record
from sagaz_es.reading.projector import Projector
from sagaz_es.reading.time_travel import SagaHistory
from sagaz_es.recording.csv_file import MAX_ERRORS, RowError, time_of
from sagaz_es.recording.importing import ImportResult, import_csv
from sagaz_es.storage.memory import MemoryProjectionStore

FINES = Path(__file__).parents[2] / "examples/data/road_traffic_fines.csv"
FINES_COLUMNS = {
    "saga_id_column": "case:concept:name",
    "step_column": "concept:name",
    "time_column": "time:timestamp",
}
COLUMNS = {"saga_id_column": "id", "step_column": "step", "time_column": "time"}


async def imported(log: EventLog, path: Path, **options: Any) -> ImportResult:
    return await import_csv(log, path, **{"saga_name": "fine", **COLUMNS, **options})


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "file.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


async def all_events(log: EventLog) -> list[e.Event]:
    """Every event of the log; each of them is accepted, none stands twice."""
    states: dict[str, SagaState] = {}
    found = []
    for partition in range(log.partitions):
        chunk = await log.read(partition, 0, limit=10**6)
        for record in chunk.records:
            if isinstance(record.entry, e.Event):
                found.append(record.entry)
                state = states.setdefault(record.entry.saga_id, SagaState())
                assert fold_into(state, record.entry) is Verdict.ACCEPTED
    return found


# --- real cases -----------------------------------------------------------------------------------

Row = dict[str, str]


def model() -> dict[str, list[tuple[datetime, Row]]]:
    """The cases of the file, each one's rows in order; nothing of the product in it."""
    cases: dict[str, list[tuple[datetime, Row]]] = {}
    with FINES.open(newline="") as file:
        for row in csv.DictReader(file):
            at = datetime.strptime(row["time:timestamp"], "%Y-%m-%d %H:%M:%S%z")
            cases.setdefault(row["case:concept:name"], []).append((at, row))
    for rows in cases.values():
        rows.sort(key=lambda item: item[0])
    return cases


def context_of(rows: Sequence[tuple[datetime, Row]]) -> dict[str, str]:
    context: dict[str, str] = {}
    for _, row in rows:
        given = {key: text for key, text in row.items() if text}
        context |= {k: v for k, v in given.items() if k not in FINES_COLUMNS.values()}
    return context


@pytest.mark.parametrize("with_store", [False, True])
async def test_every_case_is_at_every_time_what_the_file_says(with_store: bool) -> None:
    log = MemoryEventLog()
    store = MemoryProjectionStore() if with_store else None
    result = await imported(log, FINES, **FINES_COLUMNS)
    assert result == ImportResult(sagas=100, events=390, skipped=0)
    if store is not None:
        await Projector(log, store).run_until()
    for case, rows in model().items():
        past = SagaHistory(case, log, store)
        for at in {at for at, _ in rows}:
            state = await past.state_at(at)
            until = [row for row in rows if row[0] <= at]
            assert state.context == context_of(until)
            assert state.sequence == len(until)
            assert state.timestamp == at
            steps = dict.fromkeys(row["concept:name"] for _, row in until)
            assert state.completed_steps == list(steps)
        told = await past.changes()
        assert [change.step for change in told] == [row["concept:name"] for _, row in rows]
        for number, row in enumerate(rows):
            assert told[number].changes["set"] == context_of([row])
            assert (await past.state_at(number + 1)).context == context_of(rows[: number + 1])
    state = await SagaHistory(next(iter(model())), log, store).now()
    assert (state.saga_name, state.status, state.recorded) == ("fine", "executing", True)


async def test_the_same_file_again_adds_nothing() -> None:
    log = MemoryEventLog()
    await imported(log, FINES, **FINES_COLUMNS)
    before = await all_events(log)
    result = await imported(log, FINES, **FINES_COLUMNS)
    assert result == ImportResult(sagas=0, events=0, skipped=390)
    assert await all_events(log) == before


async def test_types_are_inferred_on_request() -> None:
    log = MemoryEventLog()
    await imported(log, FINES, **FINES_COLUMNS, infer_types=True)
    first = (await SagaHistory("N77802", log).state_at(1)).context
    assert first == {
        "amount": 35.0,
        "article": 157.0,
        "dismissal": "NIL",
        "lifecycle:transition": "complete",
        "org:resource": 537,
        "points": 0.0,
        "totalPaymentAmount": 0.0,
        "vehicleClass": "A",
    }
    assert [type(value) for value in first.values()] == [float] * 2 + [str] * 2 + [int] + [
        float,
        float,
        str,
    ]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("0", 0),
        ("-7", -7),
        ("12345678901234567890123", 12345678901234567890123),
        ("1.50", 1.5),
        ("-0.25", -0.25),
        ("1e3", 1000.0),
        ("true", True),
        ("FALSE", False),
        ("007", "007"),
        ("+49", "+49"),
        ("1_000", "1_000"),
        ("1,5", "1,5"),
        (".5", ".5"),
        ("1.", "1."),
        ("٣", "٣"),
        ("1e999", "1e999"),
        ("9" * 101, "9" * 101),
        ("nan", "nan"),
        ("Infinity", "Infinity"),
        ("-", "-"),
        ("tRue", "tRue"),
        (" 1", " 1"),
        ("null", "null"),
    ],
)
async def test_only_what_is_plainly_a_number_or_a_boolean_becomes_one(
    cell: str, value: Any, tmp_path: Path
) -> None:
    path = written(tmp_path, f'id,step,time,x\no1,a,2026-01-01,"{cell}"\n')
    log = MemoryEventLog()
    await imported(log, path, infer_types=True)
    found = (await SagaHistory("o1", log).now()).context["x"]
    assert (found, type(found)) == (value, type(value))
    plain = MemoryEventLog()
    await imported(plain, path)
    assert (await SagaHistory("o1", plain).now()).context == {"x": cell}


# --- order, and steps that come again -------------------------------------------------------------


async def test_rows_are_ordered_by_time_and_equal_times_as_in_the_file(tmp_path: Path) -> None:
    text = """id,step,time,n
o1,c,2026-01-01T12:00:00+02:00,1
o1,a,2026-01-01T09:00:00Z,2
o1,d,2026-01-01 10:00:00,3
o1,c,2026-01-01T10:00:00.000000Z,4
o1,b,2026-01-01T09:00:00.5,5
o1,e,2026-01-02,6
"""
    log = MemoryEventLog()
    await imported(log, written(tmp_path, text))
    past = SagaHistory("o1", log)
    told = await past.changes()
    assert [(change.step, change.changes["set"]["n"]) for change in told] == [
        ("a", "2"),
        ("b", "5"),
        ("c", "1"),
        ("d", "3"),
        ("c", "4"),
        ("e", "6"),
    ]
    assert (await past.state_at("2026-01-01T10:00:00")).context == {"n": "4"}
    assert (await past.now()).completed_steps == ["a", "b", "c", "d", "e"]


async def test_the_log_has_each_partition_in_the_order_of_time(tmp_path: Path) -> None:
    rows = [
        f"o{n % 7},s{n},2026-01-01T{n % 24:02}:00:00.{n:03}"
        for n in random.Random(7).sample(range(900), 900)
    ]
    log = MemoryEventLog()
    result = await imported(log, written(tmp_path, "\n".join(["id,step,time", *rows])))
    assert (result.sagas, result.events) == (7, 900)
    for partition in range(log.partitions):
        chunk = await log.read(partition, 1)
        times = [r.entry.occurred_at for r in chunk.records if isinstance(r.entry, e.Event)]
        assert times == sorted(times)
    assert len(await all_events(log)) == 900


async def test_a_past_before_1970_is_a_past(tmp_path: Path) -> None:
    log = MemoryEventLog()
    await imported(log, written(tmp_path, "id,step,time\no1,b,1969-07-20\no1,a,1066-10-14\n"))
    past = SagaHistory("o1", log)
    assert (await past.state_at("1900-01-01")).completed_steps == ["a"]
    assert (await past.state_at("1969-07-20")).completed_steps == ["a", "b"]
    assert (await past.state_at(1)).timestamp == datetime(1066, 10, 14, tzinfo=UTC)


# --- rows that cannot be --------------------------------------------------------------------------


async def test_bad_rows_are_told_by_line_and_the_rest_is_imported(tmp_path: Path) -> None:
    text = (
        "id,step,time,note\n"
        'o1,a,2026-01-01,"two\nlines, one row"\n'  # lines 2 and 3
        ",b,2026-01-01,\n"
        "o1,  ,2026-01-01,\n"
        "o1,b,,\n"
        "o1,b,yesterday,\n"
        "\n"
        'o2,a,2026-01-01,"x""y"\n'  # line 9
        "o2,b,2026-01-02,x,too,many\n"
        "o2,c,2026-01-02,x,,\n"
        "o2,d,2026-01-02\n"
        'o2,e,2026-01-02,"x"y\n'
        f"{'i' * 2000},a,2026-01-01,\n"
        "o2,f,1735689600,\n"
        "o2,g,2026-01-03,end"
    )
    log = MemoryEventLog()
    result = await imported(log, written(tmp_path, text))
    reasons = {error.line: error.reason for error in result.errors}
    assert reasons == {
        4: "it has no saga id in column 'id'",
        5: "it has no step in column 'step'",
        6: "it has no time in column 'time'",
        7: "its time 'yesterday' is not in ISO 8601",
        10: "it has 6 cells, the header has 4",
        13: "it is no CSV: ',' expected after '\"'",
        14: "saga_id: 2000 bytes are more than 1024",
        15: "its time '1735689600' is not in ISO 8601",
    }
    assert (result.sagas, result.events, result.skipped) == (2, 5, 8)
    one, two = SagaHistory("o1", log), SagaHistory("o2", log)
    assert (await one.now()).context == {"note": "two\nlines, one row"}
    assert (await two.now()).completed_steps == ["a", "c", "d", "g"]
    assert (await two.state_at(1)).context == {"note": 'x"y'}
    assert result.to_dict()["errors"][0] == {"line": 4, "reason": reasons[4]}
    again = await imported(log, tmp_path / "file.csv")
    assert (again.events, again.skipped, again.errors) == (0, 13, result.errors)


async def test_a_quote_that_is_never_closed_costs_its_row(tmp_path: Path) -> None:
    text = 'id,step,time,note\no1,a,2026-01-01,x\no1,b,2026-01-02,"open\no1,c,2026-01-03,x\n'
    result = await imported(MemoryEventLog(), written(tmp_path, text))
    assert (result.events, result.skipped) == (1, 1)
    assert result.errors == (RowError(3, "it is no CSV: unexpected end of data"),)


async def test_a_row_that_is_not_utf_8_is_told(tmp_path: Path) -> None:
    data = "id,step,time,note\no1,a,2026-01-01,café\n".encode("latin-1")
    data += "o1,b,2026-01-02,café\n".encode()
    log = MemoryEventLog()
    result = await imported(log, written(tmp_path, data))
    assert result.errors == (RowError(2, "it is not UTF-8"),)
    assert (await SagaHistory("o1", log).now()).context == {"note": "café"}


async def test_a_row_too_large_for_the_log_is_told(tmp_path: Path) -> None:
    half = "x" * 500_000
    text = f"id,step,time,p,q\no1,a,2026-01-01,{half}{half},\no1,b,2026-01-02,{half},{half}\n"
    text += f"o1,c,2026-01-03,{half},\n"
    log = MemoryEventLog()
    result = await imported(log, written(tmp_path, text))
    assert [error.line for error in result.errors] == [2, 3]
    assert "1000018 bytes" in result.errors[1].reason
    assert (await SagaHistory("o1", log).now()).completed_steps == ["c"]
    assert csv.field_size_limit() < 900_000, "the process' own limit is as it was"


async def test_of_very_many_bad_rows_the_first_are_told_and_all_are_counted(tmp_path: Path) -> None:
    text = "id,step,time\n" + "o1,,2026-01-01\n" * (MAX_ERRORS + 5)
    result = await imported(MemoryEventLog(), written(tmp_path, text))
    assert (len(result.errors), result.skipped) == (MAX_ERRORS, MAX_ERRORS + 5)


# --- files of all kinds ---------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n\n"])
async def test_delimiters_line_ends_and_byte_order_marks(
    delimiter: str, end: str, start: str, tmp_path: Path
) -> None:
    rows = [
        ["note", "id", "time", "step", ""],
        ["a,b;c|d", "order/1 №", "2026-01-01T00:00:00Z", "pay; ship", "x"],
        ["", "order/1 №", "2026-01-02T00:00:00Z", "end", ""],
        ["", "", "2026-01-02T00:00:00Z", "end", ""],
    ]
    quoted = [delimiter.join(f'"{cell}"' for cell in row) for row in rows]
    log = MemoryEventLog()
    path = written(tmp_path, start.replace("\n", end) + end.join(quoted) + end)
    result = await imported(log, path)
    assert [error.line for error in result.errors] == [6 if start == "\n\n" else 4]
    state = await SagaHistory("order/1 №", log).now()
    assert state.context == {"note": "a,b;c|d", "column 5": "x"}
    assert state.completed_steps == ["pay; ship", "end"]


async def test_a_header_may_have_line_ends_in_quotes_and_any_names(tmp_path: Path) -> None:
    text = '"id","the\nstep",time,"$set",a.b\no1,a,2026-01-01,1,2\nx\n'
    log = MemoryEventLog()
    result = await imported(log, written(tmp_path, text), step_column="the\nstep")
    assert (await SagaHistory("o1", log).now()).context == {"$set": "1", "a.b": "2"}
    assert [error.line for error in result.errors] == [4]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "the file is empty"),
        (b"\n\r\n  \n", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b"id;step;when\n", "there is no column 'time'; columns: 'id', 'step', 'when'"),
        (b"id,step,time,x,x\n", "column 'x' is there more than once"),
        (b"id,id,step,time\n", "column 'id' is there more than once"),
        ("id,step,time,größe\n".encode("latin-1"), "line 1 is not UTF-8"),
        ("id,step,time\n".encode("utf-16"), "line 1 is not UTF-8"),
        (b'id,step,time,"open\n', "there is no column 'id'"),
        (b"id,step,time\ro1,a,2026-01-01\r", "its lines end in CR alone; save it with LF"),
    ],
)
async def test_a_file_without_the_columns_is_refused(
    data: bytes, told: str, tmp_path: Path
) -> None:
    log = MemoryEventLog()
    with pytest.raises(ConfigurationError) as refused:
        await imported(log, written(tmp_path, data))
    assert told in str(refused.value)
    assert str(tmp_path / "file.csv") in str(refused.value)
    assert await all_events(log) == []


async def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(FileNotFoundError):
        await imported(MemoryEventLog(), Path("no/such.csv"))


async def test_a_header_alone_is_an_empty_import(tmp_path: Path) -> None:
    result = await imported(MemoryEventLog(), written(tmp_path, "id,step,time"))
    assert result == ImportResult(0, 0, 0)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1970-01-01", 0),
        ("19700101", 0),
        ("1970-01-01T00:00:01", 1_000_000),
        ("1970-01-01 01:00:00+01:00", 0),
        ("1970-01-01T00:00:00.123Z", 123_000),
        ("1970-01-01T00:00:00.1234567Z", 123_456),
        ("1970-01-01T00:00:00.123456789+00:00", 123_456),
        ("1969-12-31T23:59:59.999999Z", -1),
        (" 1970-01-01T00:00:00Z ", 0),
        ("0001-01-01T00:00:00", -62_135_596_800_000_000),
    ],
)
def test_times_are_read_to_the_microsecond(text: str, at: int) -> None:
    assert time_of(text) == at


@pytest.mark.parametrize(
    "text", ["1735689600", "1211101000000", "2026", "01.02.2026", "2026-02-30", "10:00", "x"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not in ISO 8601"):
        time_of(text)


# --- twice, killed, beside others -----------------------------------------------------------------


class Dying(MemoryEventLog):
    """A log whose process ends after some appends, the last of which may stand."""

    def __init__(self, lives: int, last_stands: bool) -> None:
        super().__init__()
        self.lives, self.last_stands = lives, last_stands

    async def append(self, partition: int, entries: Sequence[e.Entry]) -> int:
        self.lives -= 1
        if self.lives < 0:
            if self.last_stands:
                await super().append(partition, entries)
            raise KeyboardInterrupt
        return await super().append(partition, entries)


@pytest.mark.parametrize("last_stands", [False, True])
@pytest.mark.parametrize("lives", [0, 1, 3, 5])
async def test_an_import_that_was_killed_goes_on_where_it_stopped(
    lives: int, last_stands: bool, tmp_path: Path
) -> None:
    rows = [f"o{n % 11},s{n},2026-01-01,{n}" for n in range(4000)]
    path = written(tmp_path, "\n".join(["id,step,time,n", *rows]))
    whole, log = MemoryEventLog(), Dying(lives, last_stands)
    await imported(whole, path)
    with pytest.raises(KeyboardInterrupt):
        await imported(log, path)
    log.lives = 1000
    there = len(await all_events(log))
    result = await imported(log, path)
    assert (result.events, result.skipped) == (4000 - there, there)
    assert await all_events(log) == await all_events(whole)


class Unsure(MemoryEventLog):
    """A log of whose appends every other one has an unknown outcome, and may stand."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = 0

    async def append(self, partition: int, entries: Sequence[e.Entry]) -> int:
        self.turn += 1
        if self.turn % 2:
            if self.turn % 4 == 1:
                await super().append(partition, entries)
            raise AppendUnknown(partition, "timed out")
        return await super().append(partition, entries)


async def test_after_an_unknown_outcome_the_identical_events_go_out_again() -> None:
    log = Unsure()
    result = await imported(log, FINES, **FINES_COLUMNS)
    assert result.events == 390
    for case, rows in model().items():
        assert (await SagaHistory(case, log).now()).sequence == len(rows)
    with pytest.raises(AppendUnknown, match="still so after 0 s"):
        await imported(Unsure(), FINES, **FINES_COLUMNS, retry_seconds=0)


async def test_other_options_or_another_file_are_another_import(tmp_path: Path) -> None:
    log = MemoryEventLog()
    path = written(tmp_path, "id,step,time,n\no1,a,2026-01-01,1\n")
    assert (await imported(log, path)).events == 1
    assert (await imported(log, path, infer_types=True)).events == 1
    more = written(tmp_path, "id,step,time,n\no1,b,2026-02-01,2\n")
    assert (await imported(log, more)).events == 1
    state = await SagaHistory("o1", log).now()
    assert (state.sequence, state.completed_steps) == (3, ["a", "b"])


async def test_a_saga_that_an_engine_runs_takes_no_rows(tmp_path: Path) -> None:
    path = written(tmp_path, "id,step,time\no1,a,2026-01-01\no2,a,2026-01-01\no1,b,2026-01-02\n")
    log, store = MemoryEventLog(), MemoryProjectionStore()
    started = e.Event("o1", "order", b"E" * 16, 0, 1, 5, e.SagaStarted())
    await log.append(log.partition_of("o1"), [started])
    result = await imported(log, path)
    assert (result.sagas, result.events, result.skipped) == (1, 1, 2)
    assert [(error.line, error.reason) for error in result.errors] == [
        (2, "its saga is run by an engine, which alone adds to it"),
        (4, "its saga is run by an engine, which alone adds to it"),
    ]
    assert len(await all_events(log)) == 2
    await Projector(log, store).run_until()
    assert await imported(log, path, store=store) == ImportResult(0, 0, 3, result.errors)


async def test_a_recorded_saga_that_an_engine_tried_to_start_takes_rows(tmp_path: Path) -> None:
    path = written(tmp_path, "id,step,time\no1,a,2026-01-01\n")
    log = MemoryEventLog()
    await imported(log, path)
    late = e.Event("o1", "order", b"E" * 16, 0, 1, 5, e.SagaStarted())
    await log.append(log.partition_of("o1"), [late])
    assert await imported(log, path) == ImportResult(0, 0, 1)
    more = written(tmp_path, "id,step,time\no1,b,2026-01-02\n")
    assert await imported(log, more) == ImportResult(1, 1, 0)


async def test_rows_of_a_saga_that_has_another_name_are_told(tmp_path: Path) -> None:
    log, store = MemoryEventLog(), MemoryProjectionStore()
    order = written(tmp_path, "id,step,time\no1,x,2025-01-01\n")
    await imported(log, order, saga_name="order")
    path = written(tmp_path, "id,step,time\no1,a,2026-01-01\no2,a,2026-01-01\n")
    why = (RowError(2, "its saga is there with another name, 'order'"),)
    assert await imported(log, path) == ImportResult(1, 1, 1, why)
    assert await imported(log, path) == ImportResult(0, 0, 2, why)
    await Projector(log, store).run_until()
    assert await imported(log, path, store=store) == ImportResult(0, 0, 2, why)
    assert (await SagaHistory("o1", log).now()).completed_steps == ["x"]


@pytest.mark.parametrize("with_store", [False, True])
async def test_rows_older_than_what_is_recorded_are_told_and_the_rest_is_added_once(
    tmp_path: Path, with_store: bool
) -> None:
    log, store = MemoryEventLog(), MemoryProjectionStore() if with_store else None
    await imported(log, written(tmp_path, "id,step,time\no1,m,2026-01-05\n"))
    path = written(
        tmp_path,
        "id,step,time\no1,a,2026-01-01\no1,b,2026-01-04\no1,c,2026-01-05\no1,d,2026-01-06\n",
    )
    for added in (2, 0, 0):
        if store is not None:
            await Projector(log, store).run_until()
        result = await imported(log, path, store=store)
        assert result.events == added
        assert [error.line for error in result.errors] == [2, 3]
        assert {error.reason.split(",")[0] for error in result.errors} == {
            "it is older than what is recorded of its saga"
        }
        assert result.skipped == 4 - added
    told = await SagaHistory("o1", log, store).changes()
    assert [change.step for change in told] == ["m", "c", "d"]
    days = [datetime(2026, 1, day, tzinfo=UTC) for day in (5, 5, 6)]
    assert [change.timestamp for change in told] == days


@pytest.mark.parametrize("with_store", [False, True])
async def test_of_a_file_that_has_grown_only_the_new_rows_are_added(
    tmp_path: Path, with_store: bool
) -> None:
    log, store = MemoryEventLog(), MemoryProjectionStore() if with_store else None
    old = "id,step,time,n\no1,a,2026-01-01,1\no1,b,2026-01-02,2\no1,c,2026-01-02,3\n"
    new = "o1,d,2026-01-02,4\no1,b,2026-01-02,9\no1,c,2026-01-02,3\no1,e,2026-01-03,5\n"
    await imported(log, written(tmp_path, old))
    grown = written(tmp_path, old + new)
    for added in (3, 0, 0):
        if store is not None:
            await Projector(log, store).run_until()
        result = await imported(log, grown, store=store)
        told = [(error.line, error.reason.split(":")[0][:24]) for error in result.errors]
        older, there = "it is older than what is", "it is recorded"
        assert told == [(2, older), (3, there), (4, there), (7, there)]
        assert (result.events, result.skipped) == (added, 7 - added)
    changes = await SagaHistory("o1", log, store).changes()
    assert [(one.step, one.changes["set"]["n"]) for one in changes] == [
        ("a", "1"),
        ("b", "2"),
        ("c", "3"),
        ("d", "4"),
        ("b", "9"),
        ("e", "5"),
    ]


async def test_an_old_past_that_was_killed_and_that_others_wrote_into_goes_on(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, "id,step,time\no1,a,1960-01-01\no1,b,1960-01-02\no1,c,1960-01-04\n")
    whole, log = MemoryEventLog(), MemoryEventLog()
    await imported(whole, path)
    first, *_ = await all_events(whole)
    other = e.Event("o1", "fine", b"R" * 16, -1, 1, time_of("1960-01-01"), e.StepCompleted("x"))
    await log.append(log.partition_of("o1"), [first, other])
    assert await imported(log, path) == ImportResult(1, 2, 1)
    assert await imported(log, path) == ImportResult(0, 0, 3)
    steps = [change.step for change in await SagaHistory("o1", log).changes()]
    assert steps == ["a", "x", "b", "c"]


async def test_an_import_that_others_wrote_into_meanwhile_adds_no_row_twice(
    tmp_path: Path,
) -> None:
    whole = MemoryEventLog()
    path = written(tmp_path, "id,step,time\no1,a,2026-01-01\no1,b,2026-01-02\no1,c,2026-01-04\n")
    await imported(whole, path)
    first, *_ = await all_events(whole)
    log = MemoryEventLog()  # the import was killed behind its first row
    await log.append(log.partition_of("o1"), [first])
    other = e.Event("o1", "fine", b"R" * 16, -1, 1, time_of("2026-01-03"), e.StepCompleted("x"))
    await log.append(log.partition_of("o1"), [other])
    for _ in range(2):
        result = await imported(log, path)
        assert (result.events, [error.line for error in result.errors]) == (0, [3, 4])
    assert [change.step for change in await SagaHistory("o1", log).changes()] == ["a", "x"]


async def test_cases_end_where_the_import_says_so(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "id,step,time\n"
        "o1,pay,2026-01-01\no1,ship,2026-01-02\n"
        "o2,ship,2026-01-01\no2,refund,2026-01-03\n"
        "o3,pay,2026-01-01\n"
        "o4,lost=found,2026-01-01\n",
    )
    ends = {"ship": "completed", "refund": "rolled_back", "lost=found": "failed"}
    log, store = MemoryEventLog(), MemoryProjectionStore()
    result = await imported(log, path, ends=ends)
    assert result == ImportResult(sagas=4, events=6, skipped=0, ended=3)
    await Projector(log, store).run_until()
    assert await imported(log, path, ends=ends) == ImportResult(0, 0, 6)
    assert await imported(log, path, ends=ends, store=store) == ImportResult(0, 0, 6)
    found = {case: await SagaHistory(case, log).now() for case in ("o1", "o2", "o3", "o4")}
    statuses = [str(state.status) for state in found.values()]
    assert statuses == ["completed", "rolled_back", "executing", "failed"]
    assert found["o2"].timestamp == datetime(2026, 1, 3, tzinfo=UTC)
    before = await SagaHistory("o1", log).state_at(datetime(2026, 1, 1, tzinfo=UTC))
    assert before.status == "executing"


async def test_a_file_imported_without_ends_can_get_them_later(tmp_path: Path) -> None:
    path = written(tmp_path, "id,step,time\no1,a,2026-01-01\no2,b,2026-01-01\n")
    log = MemoryEventLog()
    await imported(log, path)
    assert await imported(log, path, ends={"*": "completed"}) == ImportResult(0, 0, 2, (), 2)
    assert await imported(log, path, ends={"*": "completed"}) == ImportResult(0, 0, 2)
    assert (await SagaHistory("o2", log).now()).status == "completed"
    with pytest.raises(ConfigurationError, match=r"ends: one of completed, .*, not 'over'"):
        await imported(log, path, ends={"*": "over"})


class Counting(MemoryEventLog):
    """A log that counts what is read of it."""

    def __init__(self, indexed: bool) -> None:
        super().__init__()
        self.indexed = indexed
        self.read_records = self.looked_up = 0

    async def read(
        self, partition: int, offset: int, *, limit: int = 1000, wait_s: float = 0.0
    ) -> Chunk:
        chunk = await super().read(partition, offset, limit=limit, wait_s=wait_s)
        self.read_records += len(chunk.records)
        return chunk

    async def read_saga(self, saga_id: str, from_offset: int = 0) -> tuple[Record, ...]:
        self.looked_up += 1
        return await super().read_saga(saga_id, from_offset)


async def test_what_stands_is_looked_up_the_cheapest_way(tmp_path: Path) -> None:
    log = Counting(indexed=True)
    others = [e.Event(f"x{n}", "x", b"X" * 16, -1, 1, 0, e.StepStarted("a")) for n in range(2000)]
    for one in others:
        await log.append(log.partition_of(one.saga_id), [one])
    path = written(tmp_path, "id,step,time\n" + "o1,a,2026-01-01\n" * 3)
    assert (await imported(log, path)).events == 3
    assert (await imported(log, path)).events == 0
    assert (log.looked_up, log.read_records) == (2, 0)
    log.indexed = False
    assert (await imported(log, path)).events == 0
    bounds: Bounds = await log.bounds(log.partition_of("o1"))
    assert (log.looked_up, log.read_records) == (2, bounds.end)
    store = MemoryProjectionStore()
    await Projector(log, store).run_until()
    log.read_records = 0
    assert (await imported(log, path, store=store)).events == 0
    assert log.read_records == 0


async def test_an_import_tells_how_far_it_is() -> None:
    log = MemoryEventLog()
    await imported(log, FINES, **FINES_COLUMNS)
    seen: list[tuple[str, int, int]] = []
    await imported(log, FINES, **FINES_COLUMNS, progress=lambda *told: seen.append(told))
    size = FINES.stat().st_size
    assert seen[0] == ("reading", size, size)
    assert seen[-1] == ("writing", 390, 390)
    comparing = [told for told in seen if told[0] == "comparing"]
    assert comparing[-1][1] == comparing[-1][2] == 394


async def test_random_files_become_the_cases_that_they_hold(tmp_path: Path) -> None:
    rng = random.Random(5)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    cells = ["", "x", 'quo"te', "com,ma", "new\nline", "ünï", "1"]
    for _ in range(20):
        rows = []
        for _ in range(rng.randrange(60)):
            at = start + timedelta(hours=rng.randrange(5))
            row = [f"o{rng.randrange(6)}", rng.choice("abc"), at.isoformat()]
            rows.append([*row, rng.choice(cells), rng.choice(cells)])
        path = tmp_path / "file.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["id", "step", "time", "p", "q"], *rows])
        log = MemoryEventLog(3)
        result = await imported(log, path)
        assert (result.events, result.errors) == (len(rows), ())
        for case in {row[0] for row in rows}:
            mine = sorted((row for row in rows if row[0] == case), key=lambda row: row[2])
            told = await SagaHistory(case, log).changes()
            assert [change.step for change in told] == [row[1] for row in mine]
            assert [change.changes["set"] for change in told] == [
                {key: cell for key, cell in zip("pq", row[3:], strict=True) if cell} for row in mine
            ]
