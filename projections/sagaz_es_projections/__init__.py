"""Read models of the log, and the projector that keeps them."""
