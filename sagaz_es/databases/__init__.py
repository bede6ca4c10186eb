"""Connections to databases, for the adapters that keep something in one."""
