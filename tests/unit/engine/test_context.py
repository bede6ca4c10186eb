"""What a step is given: reads are noted, changes found, the rest is a plain dict."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from sagaz_es.errors import StepNotFound, UnstorableValue
from sagaz_es.sagas.context import StepContext

TEXTS = {"a": "1", "nested": '{"list":[1,{"x":2}]}', "s": '"text"'}


def context(**results: str) -> StepContext:
    return StepContext(
        dict(TEXTS), saga_id="order-1", step="charge", attempt=2, results=results or None
    )


def match_rest(ctx: Any) -> None:
    match ctx:
        case {"a": _, **rest}:
            assert "nested" in rest


def match_key(ctx: Any) -> None:
    match ctx:
        case {"a": 1}:
            pass


@pytest.mark.parametrize(
    ("read", "noted"),
    [
        (lambda ctx: None, []),
        (lambda ctx: ctx["a"], ["a"]),
        (lambda ctx: ctx.get("a"), ["a"]),
        (lambda ctx: ctx.get("missing"), ["missing"]),
        (lambda ctx: "a" in ctx, ["a"]),
        (lambda ctx: "missing" not in ctx, ["missing"]),
        (lambda ctx: ctx.pop("a"), ["a"]),
        (lambda ctx: ctx.setdefault("a", 2), ["a"]),
        (lambda ctx: "{a}".format_map(ctx), ["a"]),
        (match_key, ["a"]),
        (lambda ctx: len(ctx), []),
        (lambda ctx: bool(ctx), []),
        (lambda ctx: ctx.__setitem__("a", 2), []),
        (lambda ctx: ctx.get(1), []),
        (lambda ctx: list(ctx), ["*"]),
        (lambda ctx: dict(ctx), ["*"]),
        (lambda ctx: {**ctx}, ["*"]),
        (lambda ctx: ctx.copy(), ["*"]),
        (lambda ctx: copy.copy(ctx), ["*"]),
        (lambda ctx: copy.deepcopy(ctx), ["*"]),
        (lambda ctx: pickle.dumps(ctx), ["*"]),
        (lambda ctx: json.dumps(ctx), ["*"]),
        (lambda ctx: ctx | {"b": 1}, ["*"]),
        (lambda ctx: {"b": 1} | ctx, ["*"]),
        (lambda ctx: ctx == {}, ["*"]),
        (lambda ctx: ctx != {}, ["*"]),
        (lambda ctx: ctx.keys(), ["*"]),
        (lambda ctx: ctx.values(), ["*"]),
        (lambda ctx: ctx.items(), ["*"]),
        (lambda ctx: ctx.popitem(), ["*"]),
        (lambda ctx: list(reversed(ctx)), ["*"]),
        (lambda ctx: repr(ctx), ["*"]),
        (lambda ctx: f"{ctx}", ["*"]),
        (lambda ctx: "{a}".format(**ctx), ["*"]),
        (match_rest, ["*"]),
    ],
)
def test_every_way_of_reading_is_noted(read: Callable[[Any], Any], noted: list[str]) -> None:
    ctx = context()
    read(ctx)
    assert ctx.reads() == noted


@pytest.mark.parametrize(
    ("change", "changed", "deleted"),
    [
        (lambda ctx: None, {}, []),
        (lambda ctx: ctx["nested"]["list"], {}, []),
        (lambda ctx: ctx["nested"]["list"][1].update(x=3), {"nested": '{"list":[1,{"x":3}]}'}, []),
        (lambda ctx: [v.popitem() for v in ctx.values() if type(v) is dict], {"nested": "{}"}, []),
        (lambda ctx: ctx.__setitem__("a", 1), {}, []),
        (lambda ctx: ctx.__setitem__("a", 2), {"a": "2"}, []),
        (lambda ctx: ctx.__setitem__("a", True), {"a": "true"}, []),
        (lambda ctx: ctx.__delitem__("a"), {}, ["a"]),
        (lambda ctx: ctx.pop("s"), {}, ["s"]),
        (lambda ctx: ctx.pop("missing", None), {}, []),
        (lambda ctx: ctx.clear(), {}, ["a", "nested", "s"]),
        (lambda ctx: (ctx.clear(), ctx.update(a=1)), {}, ["nested", "s"]),
        (lambda ctx: ctx.update({"b": [1]}, c=None), {"b": "[1]", "c": "null"}, []),
        (lambda ctx: ctx.__ior__({"b": 0}), {"b": "0"}, []),
        (lambda ctx: ctx.setdefault("b", []).append(1), {"b": "[1]"}, []),
        (lambda ctx: ctx.setdefault("a", 9), {}, []),
        (lambda ctx: ctx.popitem(), {}, ["s"]),
        (lambda ctx: ctx.data.update(b=1), {"b": "1"}, []),
        (lambda ctx: ctx.set("b", 1), {"b": "1"}, []),
    ],
)
def test_every_change_is_found_and_nothing_else(
    change: Callable[[Any], Any], changed: dict[str, str], deleted: list[str]
) -> None:
    ctx = context()
    change(ctx)
    assert ctx.delta() == (changed, deleted)


def test_a_missing_key_that_names_a_completed_step_reads_as_its_result() -> None:
    ctx = context(reserve='{"r":7}', nothing="")
    assert ctx["reserve"] == {"r": 7}
    assert ctx.get("nothing", "default") is None
    assert "reserve" in ctx
    assert ctx.has("reserve")
    assert ctx.reads() == ["nothing", "reserve", "result_of:nothing", "result_of:reserve"]
    with pytest.raises(KeyError):
        ctx["ship"]


def test_the_result_of_a_step_that_has_none_is_an_error_that_names_it() -> None:
    with pytest.raises(StepNotFound) as error:
        context(reserve="1").result_of("ship")
    assert str(error.value) == (
        "saga 'order-1' has no completed step 'ship'; completed are: 'reserve'"
    )


def test_results_are_copies() -> None:
    ctx = context(reserve='{"r":[7]}')
    ctx.result_of("reserve")["r"].append(8)
    assert ctx.result_of("reserve") == {"r": [7]}


def test_keys_are_texts() -> None:
    ctx = context()
    dict.__setitem__(ctx, "a", 1)
    ctx[1] = "x"  # type: ignore[index]
    with pytest.raises(UnstorableValue, match="1: an int cannot be kept; the keys of a context"):
        ctx.delta()


def test_a_copy_is_a_plain_dict() -> None:
    for made in (context().copy(), copy.copy(context()), copy.deepcopy(context())):
        assert type(made) is dict
        assert made == {"a": 1, "nested": {"list": [1, {"x": 2}]}, "s": "text"}
