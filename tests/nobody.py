"""Code as a user without rights: the tests may be run by root, who may write anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def as_nobody(directory: Path, mode: int = 0o755) -> Iterator[None]:
    """In a directory of this mode, without root's power over permissions."""
    directory.chmod(mode)
    if os.geteuid() != 0:
        yield
    else:
        for parent in directory.parents:  # pytest's own are for root alone
            if "pytest-" in str(parent):
                parent.chmod(0o755)
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
    directory.chmod(0o755)
