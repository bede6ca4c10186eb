"""The command line, `sagaz-es`."""
