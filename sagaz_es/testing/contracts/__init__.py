"""The laws of the ports as tests: one class a port, to be subclassed by each adapter's tests."""
