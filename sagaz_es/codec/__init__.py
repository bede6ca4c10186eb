"""Bytes and texts <-> values. CPU only: nothing here waits, except a registry's fetch at start."""
