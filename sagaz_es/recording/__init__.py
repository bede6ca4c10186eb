"""Facts of sagas that others run: written as they happen, or imported afterwards."""
