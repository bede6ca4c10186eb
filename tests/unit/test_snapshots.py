"""ReplayConfig and SagaSnapshot, as users see them."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from sagaz_es.core.snapshot import OFF, SnapshotStrategy, parse_policy
from sagaz_es.core.state import SagaStatus
from sagaz_es.errors import ConfigurationError, UnstorableValue
from sagaz_es.snapshots import ReplayConfig, SagaSnapshot, from_stored, to_stored

AT = datetime(2026, 1, 1, 12, 0, 0, 123456, UTC)


def snapshot(**changes: Any) -> SagaSnapshot:
    return SagaSnapshot(
        **{
            "snapshot_id": "s-1",
            "saga_id": "order/2026-07 №5",
            "saga_name": "order",
            "step_name": "charge",
            "step_index": 1,
            "status": "executing",
            "context": {"sku": "A1", "lines": [1, 2], "price": Decimal("9.90"), "$x": {"$y": 1}},
            "completed_steps": ["reserve"],
            "created_at": AT,
            "retention_until": AT + timedelta(days=365),
            "external_refs": {"scan": "sha256:00"},
            "sequence": 3,
            **changes,
        }
    )


# --- ReplayConfig


def test_nothing_is_captured_unless_asked_for() -> None:
    config = ReplayConfig()
    assert dataclasses.asdict(config) == {
        "enable_snapshots": False,
        "snapshot_strategy": "before_each_step",
        "retention_days": 30,
        "compression": None,
        "encryption_key_id": None,
        "max_snapshots_per_saga": None,
        "every_events": None,
        "every_seconds": None,
    }
    assert parse_policy(config.policy_text()) is OFF


def test_the_default_strategy_captures() -> None:
    policy = ReplayConfig(enable_snapshots=True).policy()
    assert (policy.strategy, policy.retention_days) == (SnapshotStrategy.BEFORE_EACH_STEP, 30)
    assert parse_policy(ReplayConfig(enable_snapshots=True).policy_text()) == policy


def test_the_strategy_may_be_given_as_text() -> None:
    config = ReplayConfig(True, "every_interval", every_seconds=1.5)
    assert config.snapshot_strategy is SnapshotStrategy.EVERY_INTERVAL
    assert config.policy().every_us == 1_500_000


def test_retention_is_exact() -> None:
    assert ReplayConfig(retention_days=365).get_retention_until(AT) == AT + timedelta(days=365)
    assert ReplayConfig(retention_days=None).get_retention_until(AT) is None


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("snapshot_strategy", "sometimes", "'before_each_step'"),
        ("snapshot_strategy", None, "'manual'"),
        ("compression", "gzip", "'zstd'"),
        ("retention_days", -1, "0 or more"),
        ("retention_days", 1.5, "0 or more"),
        ("retention_days", True, "0 or more"),
        ("max_snapshots_per_saga", 0, "1 or more"),
        ("every_events", 0, "1 or more"),
        ("every_seconds", 0, "above 0"),
        ("every_seconds", float("nan"), "above 0"),
        ("encryption_key_id", "", "the id of a key"),
    ],
)
def test_what_is_not_allowed_is_named_with_what_is(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        ReplayConfig(**{field: value})
    assert field in str(refusal.value)
    assert allowed in str(refusal.value)


# --- SagaSnapshot


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(SagaSnapshot)])
def test_no_attribute_can_be_assigned(field: str) -> None:
    with pytest.raises(AttributeError):
        setattr(snapshot(), field, None)
    with pytest.raises(AttributeError):
        delattr(snapshot(), field)


def test_what_it_was_made_of_may_change() -> None:
    context = {"lines": [1, {"a": [2]}]}
    done, refs = ["reserve"], {"scan": "x"}
    made = snapshot(context=context, completed_steps=done, external_refs=refs)
    context["lines"][1]["a"].append(3)  # type: ignore[index]
    done.append("charge")
    refs.clear()
    assert made.context == {"lines": [1, {"a": [2]}]}
    assert (made.completed_steps, made.external_refs) == (["reserve"], {"scan": "x"})


def test_what_it_hands_out_may_change() -> None:
    made = snapshot(context={"lines": [1]})
    made.context["lines"].append(2)
    made.completed_steps.append("charge")  # type: ignore[attr-defined]  # it is a list
    assert (made.context, made.completed_steps) == ({"lines": [1]}, ["reserve"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"retention_until": None, "external_refs": None},
        {"created_at": AT.astimezone(timezone(timedelta(hours=5, minutes=30)))},
        {"context": {}, "completed_steps": (), "sequence": 0},
        {"context": {"s": {1, 2}, "t": (1, (2,)), "b": b"\0", "u": UUID(int=7), "d": AT}},
    ],
)
def test_it_comes_back_from_a_plain_record(changes: dict[str, Any]) -> None:
    made = snapshot(**changes)
    record = made.to_dict()
    back = SagaSnapshot.from_dict(json.loads(json.dumps(record)))
    assert back == made
    for field in dataclasses.fields(made):
        assert getattr(back, field.name) == getattr(made, field.name)
    assert back.created_at.tzinfo is UTC


def test_it_comes_back_from_pickle_copy_and_replace() -> None:
    made = snapshot()
    assert pickle.loads(pickle.dumps(made)) == made
    assert copy.deepcopy(made) == made
    other = dataclasses.replace(made, sequence=4)
    assert (other.sequence, other.context) == (4, made.context)
    assert other != made


def test_unknown_fields_and_statuses_of_a_record_are_taken_as_they_are() -> None:
    record = {**snapshot().to_dict(), "status": "levitating", "mood": "good"}
    assert SagaSnapshot.from_dict(record).status == "levitating"


def test_known_statuses_are_those_of_a_saga() -> None:
    assert snapshot(status="executing").status is SagaStatus.EXECUTING


def test_a_record_made_by_hand_may_hold_values() -> None:
    record = {**snapshot().to_dict(), "context": {"price": Decimal("1.0")}, "created_at": AT}
    assert SagaSnapshot.from_dict(record).context == {"price": Decimal("1.0")}


def test_ids_may_be_uuids_and_times_without_a_zone_are_utc() -> None:
    saga_id = uuid4()
    made = SagaSnapshot.create(
        saga_id, "order", "charge", 1, "executing", {}, [], created_at=AT.replace(tzinfo=None)
    )
    assert (made.saga_id, made.created_at) == (str(saga_id), AT)
    assert UUID(made.snapshot_id)


def test_what_cannot_be_kept_is_refused_with_its_path() -> None:
    with pytest.raises(UnstorableValue, match=r"order\.lines\[1\]"):
        snapshot(context={"order": {"lines": [1, object()]}})


def test_contexts_are_compared_by_value() -> None:
    one = snapshot(context={"a": {"x": 1, "y": 2}, "b": 3})
    other = snapshot(context={"b": 3, "a": {"y": 2, "x": 1}})
    assert one == other
    assert hash(one) == hash(other)
    assert one != snapshot(context={"a": 1})
    assert one != "one"


def test_its_repr_shows_no_data() -> None:
    assert "A1" not in repr(snapshot())


def test_it_comes_back_from_its_row() -> None:
    made = snapshot()
    assert from_stored(to_stored(made)) == made
