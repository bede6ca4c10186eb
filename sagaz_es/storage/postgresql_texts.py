"""Any text in a PostgreSQL column, and any id in an index."""

from __future__ import annotations

import hashlib
import re

MAX_KEY_BYTES = 1000
"""An entry of an index has room for some 2,700 bytes; a longer id is kept as its hash."""


def text_of(value: str) -> str:
    """A text without NUL, which PostgreSQL cannot hold. Different texts stay different."""
    if "\\" in value or "\0" in value:
        return value.replace("\\", "\\\\").replace("\0", "\\0")
    return value


_ESCAPED = re.compile(r"\\(.)")


def plain_of(text: str) -> str:
    """The reverse of `text_of`."""
    if "\\" not in text:
        return text
    return _ESCAPED.sub(lambda found: "\0" if found[1] == "0" else found[1], text)


def key_of(value: str) -> str:
    r"""As `text_of`, but short enough for an index: `\h…`, as no `text_of` begins, is a hash."""
    if len(value) * 4 <= MAX_KEY_BYTES or len(value.encode()) <= MAX_KEY_BYTES:
        return text_of(value)
    return f"\\h{hashlib.sha256(value.encode()).hexdigest()}"
