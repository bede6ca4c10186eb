"""Where the program begins: it says which extra to install where what it is made of is missing.

The rest is imported late, as that takes a while, in which Ctrl-C may come.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sagaz_es.errors import MissingDependencyError

PARTS = ("click", "rich", "yaml")
"""What the extra `cli` brings."""


def start() -> NoReturn:
    """Run the command line and end the process."""
    try:
        from sagaz_es_cli.main import main
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except ModuleNotFoundError as error:
        missing = missing_part(error)
        if missing is None:
            raise
        from sagaz_es_cli import exits

        print(f"Error: {missing}", file=sys.stderr)
        raise SystemExit(exits.status_of(missing)) from None
    main(prog_name="sagaz-es")
    raise SystemExit  # click has ended the process before


def missing_part(error: BaseException) -> MissingDependencyError | None:
    """What to say of an import that failed, if the extra `cli` brings what is missing."""
    missing = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and missing in PARTS:
        from sagaz_es.errors import MissingDependencyError

        return MissingDependencyError(missing, "the command line", "cli")
    return None
