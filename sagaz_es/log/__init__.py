"""Logs: one adapter a file, all of them `sagaz_es.ports.EventLog`."""
