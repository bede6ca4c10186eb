"""The group of commands."""

import click


@click.group()
@click.version_option(package_name="sagaz-es")
def main() -> None:
    """Durable sagas on a Kafka log: run, look at, replay and repair them."""
