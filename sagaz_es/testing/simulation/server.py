"""A server that all simulated processes share, and that is away for a while now and then."""

from __future__ import annotations

from sagaz_es.testing.simulation.broker import Broker


class Server:
    """What the adapters of all processes stand on. What it has it keeps through an outage."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.down_until = 0.0  # the loop's time

    @property
    def is_down(self) -> bool:
        return self.broker.loop.time() < self.down_until

    def restart(self, seconds: float) -> None:
        """It is away for so long from now on."""
        self.down_until = self.broker.loop.time() + seconds
