"""Stores of values too large for an event: one adapter a file, all `sagaz_es.ports.BlobStore`."""
