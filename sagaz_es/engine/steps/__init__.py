"""One attempt of a step: what it is given, how it is called, what is recorded of it."""
