"""The project's own tests; `tests.servers` starts the real servers that they use."""
