"""`sagaz-es import`."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Output, Shop

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
    assert given.json == {"sagas": 2, "events": 3, "skipped": 0, "errors": []}
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
    assert table[:3] == ["sagas    0", "events   0", "skipped  5"]
    assert table[4] == "not read"


def test_a_column_that_is_not_there_is_wrong_usage(shop: Shop, file: Path) -> None:
    given = load(shop, file, "--step-column", "step")
    assert (given.status, given.stdout) == (2, "")
    assert "there is no column 'step'; columns: 'case', 'activity'" in given.error


def test_a_file_that_is_not_there_is_wrong_usage(shop: Shop) -> None:
    given = load(shop, Path("nothing.csv"))
    assert (given.status, given.stdout) == (2, "")
    assert "File 'nothing.csv' does not exist" in given.error
