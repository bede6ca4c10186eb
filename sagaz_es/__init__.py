"""Durable sagas on a Kafka log."""
