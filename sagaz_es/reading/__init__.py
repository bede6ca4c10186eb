"""What reads the log without running anything: the projector, lookups, the past of a saga."""
