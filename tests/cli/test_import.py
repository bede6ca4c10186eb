"""`sagaz-es import`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import APP, Output, Shop

CSV = """case,activity,when,amount,note
f-1,Create,2026-01-01T10:00:00Z,35.0,
f-1,Send,2026-01-02T10:00:00Z,,a note
f-2,Create,2026-01-01T11:00:00+01:00,22,
"""

COLUMNS = (
    "--saga-name=fine",
    "--saga-id-column=case",
    "--step-column=activity",
    "--time-column=when",
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fines.csv"
    path.write_text(CSV, encoding="utf-8")
    return path


def load(shop: Shop, file: Path, *options: str) -> Output:
    return shop.run("import", str(file), *COLUMNS, *options)


def test_an_import_adds_sagas_with_their_past(shop: Shop, file: Path) -> None:
    given = load(shop, file, "--infer-types")
    assert (given.status, given.stderr) == (0, "")
    assert given.json == {"sagas": 2, "events": 3, "skipped": 0, "ended": 0, "errors": []}
    listed = shop.run("saga", "list", "--name", "fine").json
    assert {saga["saga_id"] for saga in listed} == {"f-1", "f-2"}
    then = ("replay", "time-travel", "f-1", "--at", "2026-01-01T23:00")
    assert shop.run(*then, "--key", "amount").json == 35.0
    assert shop.run(*then).json["completed_steps"] == ["Create"]


def test_without_infer_types_all_values_are_texts(shop: Shop, file: Path) -> None:
    load(shop, file)
    at = ("replay", "time-travel", "f-1", "--at", "1", "--key", "amount")
    assert shop.run(*at).json == "35.0"


def test_importing_twice_adds_nothing(shop: Shop, file: Path) -> None:
    load(shop, file)
    again = load(shop, file)
    assert (again.status, again.json["events"], again.json["skipped"]) == (0, 0, 3)


def test_bad_rows_are_told_by_line_and_the_rest_is_imported(shop: Shop, file: Path) -> None:
    file.write_text(f"{CSV},Create,2026-01-01,1,\nf-3,Create,yesterday,1,\n", encoding="utf-8")
    given = load(shop, file)
    assert given.status == 5
    assert (given.json["events"], given.json["skipped"]) == (3, 2)
    assert [list(error) for error in given.json["errors"]] == [["line", "reason"]] * 2
    assert [error["line"] for error in given.json["errors"]] == [5, 6]
    assert "yesterday" in given.json["errors"][1]["reason"]
    table = load(shop, file, "--format", "table").stdout.splitlines()
    assert table[:4] == ["sagas    0", "events   0", "skipped  5", "ended    0"]
    assert table[5] == "not imported"


def test_a_column_that_is_not_there_is_wrong_usage(shop: Shop, file: Path) -> None:
    given = load(shop, file, "--step-column", "step")
    assert (given.status, given.stdout) == (2, "")
    assert "there is no column 'step'; columns: 'case', 'activity'" in given.error


def test_a_file_that_is_not_there_is_wrong_usage(shop: Shop) -> None:
    given = load(shop, Path("nothing.csv"))
    assert (given.status, given.stdout) == (2, "")
    assert "File 'nothing.csv' does not exist" in given.error


def test_cases_end_where_the_command_says_so_and_can_be_replayed_then(
    shop: Shop, tmp_path: Path, ledger: Callable[[], list[str]]
) -> None:
    path = tmp_path / "orders.csv"
    path.write_text("case,activity,when,token\no-1,reserve,2026-01-01,bad\n", encoding="utf-8")
    columns = ("--saga-name=order", *COLUMNS[1:])
    assert shop.run("import", str(path), *columns).json["ended"] == 0
    again = ("replay", "run", "o-1", "--from-step", "charge", "--override", "token=good")
    refused = shop.run(*again, "--app", APP)
    assert refused.status == 3
    assert "import its file again with --ends" in refused.error

    given = shop.run("import", str(path), *columns, "--ends", "reserve=failed")
    counts = {"sagas": 0, "events": 0, "skipped": 1, "ended": 1, "errors": []}
    assert (given.status, given.json) == (0, counts)
    assert shop.run("saga", "show", "o-1").json["status"] == "failed"
    replayed = shop.run(*again, "--app", APP)
    assert (replayed.status, replayed.json["status"]) == (0, "success"), replayed.stderr
    verdicts = {step["step"]: step["verdict"] for step in replayed.json["plan"]["steps"]}
    assert verdicts["reserve"] in ("reuse", "undo_first")
    assert "charge" in ledger()


def test_an_end_that_does_not_exist_is_wrong_usage(shop: Shop, file: Path) -> None:
    given = load(shop, file, "--ends", "Send=over")
    assert (given.status, given.stdout) == (2, "")
    assert "--ends: one of completed, rolled_back, failed, cancelled, not 'over'" in given.error
    assert load(shop, file, "--ends", "no such=step too").json["ended"] == 0


def test_rows_of_a_saga_with_another_name_are_told(shop: Shop, file: Path) -> None:
    load(shop, file)
    given = shop.run("import", str(file), "--saga-name=other", *COLUMNS[1:])
    assert (given.status, given.json["events"]) == (5, 0)
    reasons = {error["reason"] for error in given.json["errors"]}
    assert reasons == {"its saga is there with another name, 'fine'"}
