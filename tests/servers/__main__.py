"""`python -m tests.servers`: Kafka and PostgreSQL until Ctrl-C or SIGTERM, also without Docker.

With `--prepare` it only fetches what they need.
"""

from __future__ import annotations

import signal
import sys
import threading

from tests.servers import KafkaServer, PostgreSQLServer, describe


def main() -> None:
    kafka, postgresql = KafkaServer(), PostgreSQLServer(fsync=True)
    if "--prepare" in sys.argv[1:]:
        kafka.prepare()
        postgresql.prepare()
        return
    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    print(f"starting Kafka and PostgreSQL: {describe()}", file=sys.stderr)
    with kafka, postgresql:
        print(f"export SAGAZ_ES_LOG=kafka://{kafka.bootstrap}/demo")
        print(f"export SAGAZ_ES_STORE={postgresql.create_database('demo')}", flush=True)
        print("they run until Ctrl-C, and forget everything then", file=sys.stderr)
        end.wait()


if __name__ == "__main__":
    main()
