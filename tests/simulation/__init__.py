"""The real engine, projector and replayer under everything that can go wrong, by seeds."""
