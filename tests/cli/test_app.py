"""`--app`: what it takes, and what it says where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagaz_es_cli.sources import AppNotUsable, load

from .conftest import Project, Shop
from .shop import GiftSaga, OrderSaga, SleepySaga

SHOP = "tests.cli.shop"


def test_a_class_an_object_a_list_a_mapping_of_factories_and_a_module() -> None:
    assert load([f"{SHOP}:OrderSaga"]) == {"order": OrderSaga}
    assert list(load([f"{SHOP}:order"])) == ["order"]
    assert load([f"{SHOP}:both"]) == {"order": OrderSaga, "sleepy": SleepySaga}
    assert list(load([f"{SHOP}:made"])) == ["made"]
    # A module alone: the classes that are defined there, none of those it imports.
    assert load([SHOP]) == {"order": OrderSaga, "gift": GiftSaga, "sleepy": SleepySaga}


def test_several_add_up_and_the_same_twice_is_no_conflict() -> None:
    assert load([f"{SHOP}:OrderSaga", SHOP])["order"] is OrderSaga


@pytest.mark.parametrize(
    ("app", "why"),
    [
        (":OrderSaga", "write it as module:Class"),
        (f"{SHOP}:", "write it as module:Class"),
        ("no_such_module", "there is no module 'no_such_module'; looked in "),
        ("tests.nothing.here:X", "there is no module 'tests.nothing'"),
        (
            f"{SHOP}:Nope",
            "has no 'Nope'; sagas there: 'OrderSaga', 'GiftSaga', 'SleepySaga', 'order'",
        ),
        (f"{SHOP}:nothing", "that is a int, neither a Saga class nor a Saga object"),
        ("tests.cli.conftest", "defines no Saga class; name one: tests.cli.conftest:Class"),
    ],
)
def test_what_cannot_be_loaded_says_what_was_tried(app: str, why: str) -> None:
    with pytest.raises(AppNotUsable) as caught:
        load([app])
    assert str(caught.value).startswith(f"--app {app}: ")
    assert why in str(caught.value)


def test_two_different_sagas_of_one_name_are_refused() -> None:
    with pytest.raises(AppNotUsable, match="another --app gives a saga named 'order' too"):
        load([f"{SHOP}:OrderSaga", "tests.cli.changed_shop"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import nowhere_at_all", "needs 'nowhere_at_all', which is not installed"),
        ("raise RuntimeError('no settings')", "cannot be imported: RuntimeError: no settings"),
        ("def (:", "is no Python: invalid syntax"),
        (
            "from sagaz_es import Saga, action\n"
            "class A(Saga):\n"
            "    @action('a', depends_on=['b'])\n"
            "    async def a(self, ctx): ...\n",
            "step 'a' depends on 'b', which does not exist",
        ),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, why: str
) -> None:
    name = f"broken_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # the current directory is looked in
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(AppNotUsable) as caught:
        load([name])
    assert why in str(caught.value)


def test_app_comes_from_the_environment_separated_by_commas(shop: Shop) -> None:
    shop.env["SAGAZ_ES_APP"] = f"{SHOP}:GiftSaga, {SHOP}:OrderSaga"
    given = shop.run("saga", "start", "order", "--context", '{"token": "good"}')
    assert given.json["status"] == "completed"


def test_a_wrong_app_is_wrong_usage(shop: Shop) -> None:
    given = shop.run("saga", "start", "order", "--app", "no_such_module")
    assert (given.status, given.stdout) == (2, "")
    assert given.error.startswith("Error: --app no_such_module: there is no module")


def test_what_only_looks_does_not_need_the_code(shop: Shop) -> None:
    shop.order("o-1")
    shop.env["SAGAZ_ES_APP"] = "no_such_module"
    assert shop.run("saga", "show", "o-1").status == 0


def test_a_module_of_the_current_directory_is_found(project: Project) -> None:
    given = project.run(
        "saga", "start", "order", "--context", '{"token": "good"}', "--app", "shop:OrderSaga"
    )
    assert (given.status, given.json["status"]) == (0, "completed")
