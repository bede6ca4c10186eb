"""Pure values and functions: no await, clock, randomness, I/O or logging."""
