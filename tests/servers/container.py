"""Servers in containers; the images are those of docker-compose.yml."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docker
import yaml
from docker.errors import DockerException
from testcontainers.core.container import DockerContainer

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"


class ContainerBox:
    """A container that publishes its ports, the same inside and outside, on loopback."""

    def __init__(self, container: DockerContainer) -> None:
        self._recipe = container
        self._created = False

    @property
    def _container(self) -> Any:
        return self._recipe.get_wrapped_container()

    def start(self) -> None:
        if self._created:
            self._container.start()
        else:
            self._recipe.start()
            self._created = True

    def stop(self) -> None:
        if self._created:
            self._container.stop(timeout=30)

    def kill(self) -> None:
        self._container.reload()
        if self._container.status == "paused":  # then Docker refuses to kill it
            self._container.unpause()
        self._container.kill("SIGKILL")
        self._container.wait()

    def pause(self) -> None:
        self._container.pause()

    def resume(self) -> None:
        self._container.unpause()

    def running(self) -> bool:
        self._container.reload()
        return str(self._container.status) in ("running", "paused")

    def log(self) -> str:
        return bytes(self._container.logs(tail=40)).decode(errors="replace")

    def remove(self) -> None:
        self._recipe.stop()


def kafka(properties: Mapping[str, str], *ports: int) -> ContainerBox:
    pull("kafka")
    container = _container("kafka", *ports)
    for name, value in properties.items():
        container.with_env("KAFKA_" + name.upper().replace(".", "_"), value)
    return ContainerBox(container)


def postgresql(settings: Mapping[str, str], port: int) -> ContainerBox:
    pull("postgresql")
    container = _container("postgresql", port).with_env("POSTGRES_HOST_AUTH_METHOD", "trust")
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return ContainerBox(container.with_command(f"postgres -p {port} {options}"))


def pull(service: str) -> None:
    """Have the image here before the first test waits for it."""
    image = _image(service)
    client = docker.from_env(timeout=600)
    try:
        if not client.images.list(name=image):
            print(f"pulling {image}", file=sys.stderr)
            client.images.pull(image)
    except DockerException as error:
        advice = "SAGAZ_ES_SERVERS=local runs the servers without Docker"
        raise RuntimeError(f"no image {image}: {error}; {advice}") from error
    finally:
        client.close()


def _image(service: str) -> str:
    return str(yaml.safe_load(COMPOSE.read_text())["services"][service]["image"])


def _container(service: str, *published: int) -> DockerContainer:
    container = DockerContainer(_image(service))
    # Not with_bind_ports: that publishes the port on every address of this machine.
    ports: dict[str, Any] = container.ports
    for port in published:
        ports[f"{port}/tcp"] = ("127.0.0.1", port)
    return container
