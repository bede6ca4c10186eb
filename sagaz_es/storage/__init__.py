"""Stores of what the projector makes: one adapter a file, all `sagaz_es.ports.ProjectionStore`."""
