"""The processes: the online API, the trainer, and the demo that drives both."""
