"""A shop on real servers, and everything that can go wrong with them: `make chaos MINUTES=n`.

Several engines and a projector, each a process of its own, run a steady load of orders. What the
orders do to the world is written down by the bodies of their steps, in a file that the engine does
not know. Faults come from a schedule that follows from a seed. After each one the checker compares
log, ledger and store, and the time until everything works again is measured.

`shop.py` orders and their ledger · `worker.py` a process · `world.py` processes, servers, proxies ·
`faults.py` what goes wrong, and how soon all is to work again · `checker.py` what must hold ·
`run.py` one run · `memory.py` whether memory stays level · `report.py` what is said of it
"""
