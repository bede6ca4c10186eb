"""Containers or processes: decided once, and said."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


@cache
def docker_engine() -> str | None:
    """The version of the Docker engine to use; None: the servers run as processes.

    Raises RuntimeError if SAGAZ_ES_SERVERS asks for an engine and none answers.
    """
    wanted = os.environ.get("SAGAZ_ES_SERVERS", "")
    if wanted not in ("", "docker", "local"):
        raise RuntimeError(f"SAGAZ_ES_SERVERS={wanted!r}: it is either docker or local")
    if wanted == "local" or not (wanted or _may_have_an_engine()):
        return None
    import docker  # costs 0.2 s, so only where there is an engine to ask
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=5)
        try:
            return str(client.version()["Version"])
        finally:
            client.close()
    except DockerException as error:
        if wanted:
            raise RuntimeError(
                f"SAGAZ_ES_SERVERS=docker, but no engine answers: {error}"
            ) from error
        return None


def _may_have_an_engine() -> bool:
    sockets = [Path("/var/run/docker.sock"), Path.home() / ".docker/run/docker.sock"]
    return "DOCKER_HOST" in os.environ or any(socket.exists() for socket in sockets)


def describe() -> str:
    """One line: how servers are run here."""
    if version := docker_engine():
        return f"containers (Docker {version})"
    return "local processes (no Docker engine used)"
