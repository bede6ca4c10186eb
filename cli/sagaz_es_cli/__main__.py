"""`python -m sagaz_es_cli` is `sagaz-es`."""

from sagaz_es_cli.main import main

main(prog_name="sagaz-es")
