"""For tests of parsers: input that was valid before something happened to it.

SAGAZ_ES_FUZZ says how many examples each of these tests tries, 150 by default.
"""

from __future__ import annotations

import os
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

S = TypeVar("S", str, bytes)

EXAMPLES = int(os.environ.get("SAGAZ_ES_FUZZ", "150"))

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
slowly = settings(fuzzed, max_examples=max(10, EXAMPLES // 8))
"""For examples that cost a file or an engine."""


@st.composite
def _mutated(draw: st.DrawFn, valid: st.SearchStrategy[S], noise: st.SearchStrategy[S]) -> S:
    value = draw(valid)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(value)))
        end = draw(st.integers(start, min(len(value), start + 12)))
        what = draw(st.sampled_from(("replace", "repeat", "cut", "drop")))
        if what == "replace":
            value = value[:start] + draw(noise) + value[end:]
        elif what == "repeat":
            value = value[:end] + value[start:end] * draw(st.integers(1, 50)) + value[end:]
        elif what == "cut":
            value = value[:start]
        else:
            value = value[:start] + value[end:]
    return value


def mutated_text(valid: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Texts with some characters replaced by any others, repeated, or gone."""
    strange = st.sampled_from(
        ["\0", "\ud800", "²", "٣", "1e999", "9" * 5000, "-", "[" * 500, '"', "\n", "$", "{}", ":"]
    )
    return _mutated(valid, st.text(max_size=4) | strange)


def mutated_bytes(valid: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes with some of them replaced, repeated, or gone."""
    lengths = st.sampled_from([b"\xff" * 9 + b"\x01", b"\xfe\xff\xff\xff\x0f", b"\0" * 8])
    return _mutated(valid, st.binary(max_size=8) | lengths)
