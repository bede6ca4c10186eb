"""`python -m sagaz_es_cli` is `sagaz-es`."""

from sagaz_es_cli.start import start

start()
