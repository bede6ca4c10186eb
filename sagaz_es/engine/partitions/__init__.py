"""One partition while it is served: its queue of appends, and the sagas of it in memory."""
