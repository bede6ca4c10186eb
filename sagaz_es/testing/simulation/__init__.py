"""A log, a group, stores and processes for seeded simulations, under the real engine.

Virtual time, no I/O, no threads. `Broker` is the cluster and outlives every `Process`; an engine in
a process is given a `SimulatedLog` and a `SimulatedStore`. What goes wrong is `Weather` and the
test's own calls of `kill`, `pause`, `restart`; all chance comes from one seeded `Random`.
"""

from sagaz_es.testing.simulation.blobs import Bucket, SimulatedBlobs
from sagaz_es.testing.simulation.broker import Broker, Loss, Weather
from sagaz_es.testing.simulation.clock import SimulatedClock
from sagaz_es.testing.simulation.log import SimulatedLog
from sagaz_es.testing.simulation.points import Points
from sagaz_es.testing.simulation.processes import Process, SimulatedLoop
from sagaz_es.testing.simulation.store import Database, SimulatedStore

__all__ = [
    "Broker",
    "Bucket",
    "Database",
    "Loss",
    "Points",
    "Process",
    "SimulatedBlobs",
    "SimulatedClock",
    "SimulatedLog",
    "SimulatedLoop",
    "SimulatedStore",
    "Weather",
]
